"""The formats of data files, by file extension; a reader is imported on first use."""

from __future__ import annotations

from collections.abc import Mapping

# The reader classes, ``module:class``; each is a ``hifi.data.formats.reader.Reader``.
READERS: Mapping[str, str] = {
    ".jsonl": "hifi.data.formats.jsonl:JsonlReader",
    ".json": "hifi.data.formats.json_file:JsonReader",
    ".csv": "hifi.data.formats.delimited:CsvReader",
    ".tsv": "hifi.data.formats.delimited:TsvReader",
    ".parquet": "hifi.data.formats.parquet:ParquetReader",
}
ENDINGS = tuple(READERS)
ENDINGS_IN_WORDS = f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
