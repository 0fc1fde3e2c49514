"""The Parquet trial log: schema, writer, reader, checks, and SQL over it."""
