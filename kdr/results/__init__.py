"""What happened: the Parquet trial log, its schema, writer and reader, and SQL over it."""
