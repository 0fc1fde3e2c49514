"""The commands. Each imports what it needs when it runs: `--help` and `plan` are instant."""
