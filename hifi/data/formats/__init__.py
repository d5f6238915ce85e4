"""The formats of data files, by the ending of a file's name; nothing is loaded before its use."""

from __future__ import annotations

from collections.abc import Mapping

# The classes that read them, ``module:class``; each is a ``hifi.data.formats.reader.Reader``.
READERS: Mapping[str, str] = {
    ".jsonl": "hifi.data.formats.jsonl:JsonlReader",
    ".csv": "hifi.data.formats.delimited:CsvReader",
    ".tsv": "hifi.data.formats.delimited:TsvReader",
    ".parquet": "hifi.data.formats.parquet:ParquetReader",
}
ENDINGS = tuple(READERS)
