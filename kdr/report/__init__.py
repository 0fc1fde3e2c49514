"""What it means: rankings, tables and pages out of the log."""
