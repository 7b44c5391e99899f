"""What a data set holds, as one short string."""

import hashlib
import json

from datasets import Dataset

_ROWS = 1000  # rows hashed at a time; part of the definition, as it decides where one piece of JSON ends


def fingerprint(dataset: Dataset) -> str:
    """SHA-256, in hex, of the columns' names and values, row by row.

    Equal for equal content in any process, wherever the rows are stored. Another order of rows or columns is another content.
    The values are text, numbers, booleans, nulls, and lists of them.
    """
    plain = dataset.with_format(None)
    digest = hashlib.sha256(json.dumps(plain.column_names).encode())
    for start in range(0, len(plain), _ROWS):
        rows = plain[start : start + _ROWS]
        digest.update(json.dumps([rows[column] for column in plain.column_names]).encode())
    return digest.hexdigest()
