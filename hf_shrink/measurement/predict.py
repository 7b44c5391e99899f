"""Logits of a model with classes, for each sample or for each word, in the order of the data."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hf_shrink.errors import MismatchError, NonFiniteError
from hf_shrink.measurement.subjects import at_rest, device_of, explained

IGNORED = -100


@dataclass(frozen=True)
class Words:
    """What was said at each position with a label.

    Attributes:
        logits: float32 ``[words, classes]``, row after row.
        labels: int64 ``[words]``.
        counts: words of each row, int64 ``[rows]``.
    """

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]


def predict(model: Any, dataset: Any, tokenizer: Any, *, batch_size: int = 32) -> npt.NDArray[np.float32]:
    """Logits ``[samples, classes]`` in the order of ``dataset``.

    Batches hold samples of like length, padded to the longest of the batch only.

    Args:
        dataset: tokenised: ``input_ids``, ``attention_mask`` and what else the tokenizer made.
        tokenizer: pads the batches; needs a padding token.

    Raises:
        MismatchError: data, tokenizer and model do not fit together.
        NonFiniteError: a logit is NaN or infinite.
    """
    found: dict[int, Tensor] = {}
    with explained("predicting"), at_rest(model):
        for rows, _, outputs in batches(model, dataset, tokenizer, batch_size):
            found |= zip(rows, outputs.logits.float().cpu(), strict=True)
    joined = torch.stack([found[i] for i in range(len(found))])
    _check_finite(joined, "samples")
    return np.asarray(joined.numpy(), dtype=np.float32)


def predict_words(model: Any, dataset: Any, tokenizer: Any, *, batch_size: int = 32) -> Words:
    """Logits wherever a row's ``labels`` are not -100; arguments and errors as in ``predict``.

    Raises:
        MismatchError: also where labels do not fit the model's classes, or none counts.
    """
    check_labels(dataset)
    labels = [np.asarray(row, dtype=np.int64) for row in dataset["labels"]]
    found: dict[int, Tensor] = {}
    with explained("predicting"), at_rest(model):
        for rows, masks, outputs in batches(model, dataset, tokenizer, batch_size):
            for i, mask, own in zip(rows, masks, outputs.logits.float().cpu(), strict=True):
                found[i] = own[mask.bool()][torch.from_numpy(labels[i] != IGNORED)]
    kept = [row[row != IGNORED] for row in labels]
    joined, true = torch.cat([found[i] for i in range(len(found))]), np.concatenate(kept)
    if not len(true):
        raise MismatchError("evaluation data: every label is -100; there is nothing to judge.")
    check_classes(true, model.config.num_labels)
    _check_finite(joined, "words")
    return Words(joined.numpy(), true, np.array([len(row) for row in kept]))


def check_labels(dataset: Any) -> None:
    """Raise MismatchError where there is no column ``labels``."""
    if "labels" not in dataset.column_names:
        raise MismatchError(f"evaluation data: no column 'labels' among {dataset.column_names}.")


def check_classes(labels: npt.NDArray[np.int64], classes: int) -> None:
    """Raise MismatchError where a label is none of the model's classes."""
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        raise MismatchError(
            f"evaluation data: labels run from {labels.min()} to {labels.max()}, but the model has {classes} classes."
        )


def batches(model: Any, dataset: Any, tokenizer: Any, batch_size: int) -> Iterator[tuple[list[int], Tensor, Any]]:
    """Row numbers, their attention mask and the model's outputs, a batch at a time, rows of like length together."""
    columns = [name for name in dataset.column_names if name in tokenizer.model_input_names]
    if "input_ids" not in columns:
        raise MismatchError(f"evaluation data: no column 'input_ids' among {dataset.column_names}; tokenise it first.")
    rows = dataset.select_columns(columns)
    lengths = [len(ids) for ids in rows["input_ids"]]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    if not order:
        raise MismatchError("evaluation data: it holds no samples.")
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        batch = tokenizer.pad(rows[some], return_tensors="pt").to(device_of(model))
        yield some, batch["attention_mask"].cpu(), model(**batch)


def _check_finite(logits: Tensor, what: str) -> None:
    if bad := int((~logits.isfinite()).any(dim=-1).sum()):
        raise NonFiniteError(
            f"predicting: {bad} of {len(logits)} {what} have NaN or infinite logits; check the model's weights."
        )
