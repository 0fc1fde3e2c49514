"""Results from the log: rankings, tables, statistics, follow-up studies, pages."""
