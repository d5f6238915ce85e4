"""Data sets: uploads, checked and kept as Parquet."""
