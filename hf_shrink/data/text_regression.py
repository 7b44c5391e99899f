"""A number for each text, or pair of texts."""

import math
from collections.abc import Sequence

import pyarrow as pa

from hf_shrink.data.format import Columned
from hf_shrink.data.rows import Rows
from hf_shrink.data.text_classification import ClassFormat, strings
from hf_shrink.errors import MismatchError

IGNORED = -100.0
"""No row may have it: it stands in the loss, and is not counted among the labels."""


class NumberFormat(ClassFormat):
    """``text``, for pairs ``text_pair``, and ``label``, a finite number."""

    def encode(self, splits: Sequence[Rows]) -> tuple[tuple[str, ...], list[Columned]]:
        """One output, which has no name."""
        return ("LABEL_0",), [{**strings(rows), "label": _numbers(rows)} for rows in splits]


def _numbers(rows: Rows) -> pa.ChunkedArray:
    kind = rows.label.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise MismatchError(f"{rows.where}: labels hold {kind}; expected numbers.")
    found = rows.label.cast(pa.float64())
    bad = next((i for i, value in enumerate(found.to_pylist()) if not math.isfinite(value)), None)
    if bad is not None:
        raise MismatchError(
            f"{rows.where}: row {bad}: label {found[bad].as_py()} is no finite number. Correct or remove the row."
        )
    left_out = next((i for i, value in enumerate(found.to_pylist()) if value == IGNORED), None)
    if left_out is not None:
        raise MismatchError(
            f"{rows.where}: row {left_out}: label {IGNORED:g} says 'left out' to transformers; distillation and gradient "
            "accumulation would not count the row.\nScale or shift all labels."
        )
    return found
