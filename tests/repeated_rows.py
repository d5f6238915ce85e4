"""Parquet files of many rows, or of long texts, in a few kilobytes: each text is stored once."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
from pyarrow import parquet


def repeated_rows(*texts: str, rows: int, is_coded: bool = True) -> bytes:
    """Return a Parquet file whose texts repeat in all rows, with labels of two classes.

    Args:
        texts: one per row, in turn.
        rows: how many.
        is_coded: whether the file stores each text once.
    """
    codes = np.arange(rows, dtype=np.int32) % len(texts)
    columns = {
        "text": pa.DictionaryArray.from_arrays(codes, list(texts)),
        "label": np.arange(rows) % 2,
    }
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer, use_dictionary=is_coded, compression="zstd")
    return buffer.getvalue()
