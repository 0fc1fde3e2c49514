"""The driver process: one per study, claims on trials, and signals."""
