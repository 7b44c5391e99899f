"""What a causal language model says of texts: how likely each next token was, and which one it would have said."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from hf_shrink.errors import MismatchError, NonFiniteError
from hf_shrink.measurement.subjects import at_rest, device_of, explained

IGNORED = -100
_CELLS = 2**25
"""Logits of one batch, about 128 MB in float32: with 50,000 words a batch of 32 long rows would take gigabytes."""


@dataclass(frozen=True)
class NextTokens:
    """The predicted tokens of the same blocks in the same order.

    Attributes:
        nll: negative log-likelihood of each block's predicted tokens, summed, in nats; float64 ``[blocks]``.
        tokens: how many tokens of the block were predicted: all that have a label but the first; int64 ``[blocks]``.
        best: the most likely token at each predicted position, block after block; int64 ``[positions]``.
        labels: the token that stands there, ``[positions]``.
    """

    nll: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]
    best: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

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
        """Blocks, predicted tokens and a digest of them."""
        digest = sha256(self.tokens.tobytes() + self.labels.tobytes()).hexdigest()[:8]
        return f"{len(self.tokens)} blocks, {len(self.labels)} predicted tokens, labels {digest}"

    def per_block(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Sums over each block of one value a position."""
        ends = np.concatenate([[0], np.cumsum(self.tokens)])
        sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
        return np.asarray(sums[ends[1:]] - sums[ends[:-1]])


def judge_next_tokens(
    model: Any, dataset: Any, tokenizer: Any = None, *, batch_size: int = 32, order: Sequence[int] | None = None
) -> NextTokens:
    """The model's answers on tokenised blocks with ``labels``: position ``t`` says what it makes of label ``t + 1``.

    Each block is read by itself; its first token is not predicted. Labels of -100 do not count.

    Args:
        model: a causal language model.
        dataset: ``input_ids`` and ``labels`` of equal length, the same for every model that is compared.
        tokenizer: not needed: rows are padded behind their end, where no earlier token sees it.
        batch_size: rows at a time, at most; fewer where their logits would take more than about 128 MB.
        order: tokens are not classes: None.

    Raises:
        MismatchError: columns are missing, or labels and model do not fit.
        NonFiniteError: a logit that counts is NaN or infinite.
    """
    assert order is None, "tokens are known by their ids"
    for column in ("input_ids", "labels"):
        if column not in dataset.column_names:
            raise MismatchError(f"evaluation data: no column {column!r} among {dataset.column_names}; tokenise it first.")
    ids, labels = list(dataset["input_ids"]), list(dataset["labels"])
    if not ids:
        raise MismatchError("evaluation data: it holds no samples.")
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found: dict[int, tuple[float, npt.NDArray[np.int64], npt.NDArray[np.int64]]] = {}
    with explained("predicting"), at_rest(model):
        start = 0
        while start < len(order):
            rows = order[start : start + batch_size]
            rows = rows[: max(1, _CELLS // (len(ids[rows[-1]]) * model.config.vocab_size))]
            found |= zip(rows, _batch(model, [ids[i] for i in rows], [labels[i] for i in rows]), strict=True)
            start += len(rows)
    parts = [found[i] for i in range(len(ids))]
    return NextTokens(
        nll=np.array([nll for nll, _, _ in parts]),
        tokens=np.array([len(true) for _, _, true in parts]),
        best=np.concatenate([best for _, best, _ in parts]),
        labels=np.concatenate([true for _, _, true in parts]),
    )


def _batch(
    model: Any, ids: list[list[int]], labels: list[list[int]]
) -> list[tuple[float, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Of each row: summed nats, most likely tokens, true tokens, at the positions that count."""
    length, device = max(map(len, ids)), device_of(model)
    padded = torch.tensor([[*row, *[0] * (length - len(row))] for row in ids], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids], device=device)
    logits = model(input_ids=padded, attention_mask=mask, use_cache=False).logits
    found = []
    for row, own in zip(logits, labels, strict=True):
        wanted = torch.tensor(own[1:], dtype=torch.int64, device=device)
        kept = wanted != IGNORED
        said, true = row[: len(wanted)][kept].float(), wanted[kept]
        if not bool(said.isfinite().all()):
            raise NonFiniteError("predicting: a logit is NaN or infinite; check the model's weights.")
        nll = F.cross_entropy(said, true, reduction="none").double().sum().item()
        found.append((nll, said.argmax(dim=-1).cpu().numpy(), true.cpu().numpy()))
    return found
