"""What a language model says of tokens: how likely each true one was, and which one it would have said."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional as F

from hf_shrink.errors import MismatchError, NonFiniteError
from hf_shrink.measurement.subjects import at_rest, explained

IGNORED = -100
_CELLS = 2**25
"""Logits of one batch, about 128 MB in float32: with 50,000 words a batch of 32 long rows would take gigabytes."""

Told: TypeAlias = tuple[float, npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Of one row: summed nats, most likely tokens, true tokens, at the positions that count."""


@dataclass(frozen=True)
class TokenAnswers:
    """The told tokens of the same blocks in the same order.

    Attributes:
        nll: negative log-likelihood of each block's true tokens, summed, in nats; float64 ``[blocks]``.
        tokens: how many tokens of the block were to be told; int64 ``[blocks]``.
        best: the most likely token at each position that counts, block after block; int64 ``[positions]``.
        labels: the true one, ``[positions]``.
    """

    nll: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]
    best: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    rows: ClassVar[str] = "blocks"
    counted: ClassVar[str] = "predicted tokens"

    def __post_init__(self) -> None:
        if len(self.nll) != len(self.tokens) or len(self.best) != len(self.labels) or self.tokens.sum() != len(self.labels):
            raise MismatchError(
                f"answers: {len(self.nll)} blocks with {self.tokens.sum()} tokens do not fit {len(self.labels)} labels."
            )
        if len(self.labels) == 0:
            raise MismatchError("answers: no token to predict; the evaluation data is empty.")

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def samples(self) -> str:
        """Blocks, tokens that count and a digest of them."""
        digest = sha256(self.tokens.tobytes() + self.labels.tobytes()).hexdigest()[:8]
        return f"{len(self.tokens)} {self.rows}, {len(self.labels)} {self.counted}, labels {digest}"

    def per_block(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Sums over each block of one value a position."""
        ends = np.concatenate([[0], np.cumsum(self.tokens)])
        sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
        return np.asarray(sums[ends[1:]] - sums[ends[:-1]])

    @classmethod
    def joined(cls, parts: Sequence[Told], **more: Any) -> Self:
        """From what was told of each row, in order; ``more`` goes to fields of a kind of its own."""
        return cls(
            nll=np.array([nll for nll, _, _ in parts]),
            tokens=np.array([len(true) for _, _, true in parts]),
            best=np.concatenate([best for _, best, _ in parts]),
            labels=np.concatenate([true for _, _, true in parts]),
            **more,
        )


def told_of_rows(model: Any, run: Callable[[list[int]], list[Told]], *, batch_size: int, lengths: Sequence[int]) -> list[Told]:
    """What ``run`` tells of all rows, in their order; rows of like length are read together.

    Args:
        model: a language model; at rest meanwhile.
        run: from row numbers to what is told of each.
        batch_size: rows at a time, at most; fewer where their logits would take more than about 128 MB.
        lengths: positions with logits of each row.

    Raises:
        MismatchError: there are no rows.
    """
    if not lengths:
        raise MismatchError("evaluation data: it holds no samples.")
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    found: dict[int, Told] = {}
    with explained("predicting"), at_rest(model):
        start = 0
        while start < len(order):
            rows = order[start : start + batch_size]
            rows = rows[: max(1, _CELLS // (lengths[rows[-1]] * model.config.vocab_size))]
            found |= zip(rows, run(rows), strict=True)
            start += len(rows)
    return [found[i] for i in range(len(lengths))]


def columns_of(dataset: Any) -> tuple[list[list[int]], list[list[int]]]:
    """``input_ids`` and ``labels``; a MismatchError where one is missing."""
    for column in ("input_ids", "labels"):
        if column not in dataset.column_names:
            raise MismatchError(f"evaluation data: no column {column!r} among {dataset.column_names}; tokenise it first.")
    return list(dataset["input_ids"]), list(dataset["labels"])


def told(logits: Tensor, labels: Tensor) -> Told:
    """What logits ``[positions, words]`` say of ``labels`` ``[positions]``, where these are not -100.

    Raises:
        NonFiniteError: a logit that counts is NaN or infinite.
    """
    kept = labels != IGNORED
    said, true = logits[kept].float(), labels[kept]
    if not bool(said.isfinite().all()):
        raise NonFiniteError("predicting: a logit is NaN or infinite; check the model's weights.")
    nll = F.cross_entropy(said, true, reduction="none").double().sum().item()
    return nll, said.argmax(dim=-1).cpu().numpy(), true.cpu().numpy()
