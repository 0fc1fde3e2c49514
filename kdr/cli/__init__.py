"""The commands. Each imports the rooms that it needs when it runs, so that `--help` and `plan` are
instant.
"""
