"""The driver process: one per study, its claims on trials, and its signal handling."""
