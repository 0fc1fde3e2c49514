"""Settings of a study and its trials, and their strict reading from YAML."""
