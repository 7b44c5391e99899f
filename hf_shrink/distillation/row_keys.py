"""Which text a row of a batch is, told by its tokens alone: whatever the order, the batch and the padding."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from hf_shrink.errors import MismatchError

COLUMNS = ("input_ids", "token_type_ids")
"""What makes a text, beside the mask that tells its tokens from padding."""

_SIZE = 16  # bytes of a key: no two texts share one by chance


@dataclass(frozen=True)
class RowKeys:
    """The rows of one batch.

    Attributes:
        keys: one a row, 16 bytes each.
        starts: where the tokens of each row begin in the batch; padding on the left comes before.
        lengths: tokens of each row, padding left out.
        width: tokens of a row of the batch, with its padding.
    """

    keys: list[bytes]
    starts: list[int]
    lengths: list[int]
    width: int


def row_keys(inputs: Mapping[str, Any], columns: Sequence[str]) -> RowKeys:
    """BLAKE2 of the real tokens of each row, and of their segments where ``columns`` name them.

    A hash of what the teacher would read needs no column of its own: any collator, sampler and data set will do, and a row
    that was tokenised another way cannot be taken for the one that is kept. It costs some microseconds a row.

    Args:
        inputs: a batch with ``input_ids`` ``[batch, length]`` and, maybe, ``attention_mask`` and ``token_type_ids``.
        columns: which of ``COLUMNS`` count.

    Raises:
        MismatchError: a column is missing, or a mask with holes.
    """
    if missing := [name for name in columns if name not in inputs]:
        raise MismatchError(f"cached teacher: a batch without {missing[0]!r}, which the teacher read. Keep this column.")
    ids = _array(inputs["input_ids"])
    starts, ends = [0] * len(ids), [ids.shape[1]] * len(ids)
    if "attention_mask" in inputs:
        mask = _array(inputs["attention_mask"]) != 0
        if mask.shape != ids.shape:
            raise MismatchError(f"cached teacher: the attention mask is {list(mask.shape)}, the tokens are {list(ids.shape)}.")
        first, last = mask.argmax(axis=1), mask.shape[1] - mask[:, ::-1].argmax(axis=1)
        if (mask.sum(axis=1) != last - first).any():
            raise MismatchError("cached teacher: an attention mask with holes or a row without tokens; pad on one side only.")
        starts, ends = first.tolist(), last.tolist()
    parts = [ids, *([_array(inputs["token_type_ids"])] if "token_type_ids" in columns else [])]
    keys = [
        hashlib.blake2b(b"".join(part[i, start:end].tobytes() for part in parts), digest_size=_SIZE).digest()
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]
    return RowKeys(keys, starts, [end - start for start, end in zip(starts, ends, strict=True)], ids.shape[1])


def _array(values: Tensor) -> np.ndarray:
    """Two dimensions of 64-bit integers: a key does not depend on the type that a collator chose."""
    if values.ndim != 2:
        raise MismatchError(f"cached teacher: tokens of shape {list(values.shape)}; a row is a list of tokens.")
    return np.ascontiguousarray(values.detach().cpu().numpy(), dtype=np.int64)
