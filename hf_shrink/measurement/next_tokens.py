"""What a causal language model says of texts: how likely each next token was, and which one it would have said."""

from collections.abc import Sequence
from typing import Any

import torch

from hf_shrink.measurement.subjects import device_of
from hf_shrink.measurement.token_answers import TokenAnswers, Told, columns_of, told, told_of_rows


class NextTokens(TokenAnswers):
    """Each token of a block but the first, told from those before it."""


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
    ids, labels = columns_of(dataset)

    def run(rows: list[int]) -> list[Told]:
        logits = model(**padded([ids[i] for i in rows], device_of(model)), use_cache=False).logits
        return [told(row[: len(own) - 1], own[1:]) for row, own in beside(logits, [labels[i] for i in rows])]

    return NextTokens.joined(told_of_rows(model, run, batch_size=batch_size, lengths=list(map(len, ids))))


def padded(rows: list[list[int]], device: torch.device) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` of rows filled up behind their ends; any id will do there."""
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


def beside(logits: torch.Tensor, labels: list[list[int]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The logits of each row, padding included, and its labels."""
    return [(row, torch.tensor(own, device=row.device)) for row, own in zip(logits, labels, strict=True)]
