"""The child process that checks an upload and writes it as Parquet, and its parent's side."""
