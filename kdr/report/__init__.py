"""What it means: rankings and tables out of the log."""
