"""The Ray cluster: starting or joining it, checking its nodes, waiting for room on it."""
