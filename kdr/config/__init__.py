"""Settings of a study and its trials, and a strict YAML reader."""
