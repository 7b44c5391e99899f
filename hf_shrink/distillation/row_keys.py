"""Which text a row of a batch is, told by its tokens alone: whatever the order, the batch and the padding."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from hf_shrink.errors import MismatchError
from hf_shrink.lines import few

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


def check_padding(teachers: Sequence[nn.Module], dataset: Any, collator: Callable[[list[Any]], Mapping[str, Any]]) -> bool:
    """Whether padding on the left would move the tokens of ``dataset`` for one of ``teachers``; shapes are enough.

    It does where places are looked up in a table by the column they stand in (GPT-2, BERT); rotary and relative places do not
    care. RoBERTa leaves padding out as it counts, but classifies by the first column.

    Raises:
        MismatchError: it would, and ``collator`` pads there.
    """
    tables = [name for model in teachers for name, m in model.named_modules() if isinstance(m, nn.Embedding)]
    if not any("position" in name or name.endswith("wpe") for name in tables):
        return False
    lengths = [len(ids) for ids in dataset["input_ids"]]
    rows = sorted(range(len(lengths)), key=lambda row: lengths[row])
    refuse_moved(row_keys(collator([dataset[row] for row in (rows[0], rows[-1])]), ("input_ids",)))
    return True


def refuse_moved(keys: RowKeys) -> None:
    """A MismatchError where rows are padded on the left; only to be asked where ``check_padding`` says that it matters."""
    if any(keys.starts):
        raise MismatchError(
            f"cached teacher: batch rows {few(i for i, at in enumerate(keys.starts) if at)} are padded on the left, which "
            "moves the places that this teacher counts: its answers would be those of another batch.\n"
            "Set padding_side: right in the tokenizer, or learn from a live teacher."
        )


def _array(values: Tensor) -> np.ndarray:
    """Two dimensions of 64-bit integers: a key does not depend on the type that a collator chose."""
    if values.ndim != 2:
        raise MismatchError(f"cached teacher: tokens of shape {list(values.shape)}; a row is a list of tokens.")
    return np.ascontiguousarray(values.detach().cpu().numpy(), dtype=np.int64)
