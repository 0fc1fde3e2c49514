"""The Ray cluster: starting or joining it, checking its nodes, waiting for free resources."""
