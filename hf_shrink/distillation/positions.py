"""Which positions count: padding and the label -100 never do."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_shrink.errors import MismatchError

IGNORED = -100
"""The label that transformers leaves out of every loss."""

SAMPLED = "sampled_by_student"
"""Key of a batch whose labels are the student's own words: there is no right answer to learn from."""


def kept_positions(inputs: Mapping[str, Any], *, shifts_labels: bool) -> Tensor:
    """True where a prediction of the batch counts.

    A causal language model predicts the next token: position ``t`` counts where token ``t + 1`` has a label and both tokens
    are real. The last position predicts nothing.

    Args:
        inputs: a batch with ``labels`` ``[batch]`` or ``[batch, length]``, or floats ``[batch, outputs]``, and, maybe,
            ``attention_mask`` ``[batch, length]``; with ``start_positions`` and ``end_positions`` instead each row is one
            position; ``shift_labels`` of the same shape, already aligned with the logits, win over ``labels``.
        shifts_labels: whether the model's loss moves the labels by one.

    Returns:
        Booleans, the shape of the labels: one for each position of the logits.

    Raises:
        MismatchError: the batch has no labels.
    """
    if is_about_spans(inputs):
        return torch.ones_like(inputs["start_positions"], dtype=torch.bool)
    labels = inputs.get("shift_labels", inputs.get("labels"))
    if not isinstance(labels, Tensor):
        raise MismatchError("distillation: a batch without 'labels'; a label of -100 leaves a position out.")
    kept = labels != IGNORED
    if labels.is_floating_point() and labels.ndim > 1:
        return kept.any(dim=-1)  # many labels, or values, of one position
    attention = inputs.get("attention_mask")
    real = attention.bool() if isinstance(attention, Tensor) and attention.shape == kept.shape and kept.ndim > 1 else None
    if shifts_labels and "shift_labels" not in inputs:
        kept = _next(kept) if real is None else _next(kept & real)
    return kept if real is None else kept & real


def is_about_spans(inputs: Mapping[str, Any]) -> bool:
    """Whether a batch asks for the first and the last token of a piece of the text."""
    return "labels" not in inputs and "start_positions" in inputs and "end_positions" in inputs


def labels_in(inputs: Mapping[str, Any]) -> Tensor:
    """The labels of a batch, beside its logits: of spans both places, ``[batch, 2]``."""
    if is_about_spans(inputs):
        return torch.stack([inputs["start_positions"], inputs["end_positions"]], dim=1)
    labels: Tensor = inputs["labels"]
    return labels


def targets(inputs: Mapping[str, Any]) -> Tensor:
    """The token that a causal language model is to predict at each position, -100 where there is none, ``[batch, length]``."""
    if isinstance(shifted := inputs.get("shift_labels"), Tensor):
        return shifted
    following: Tensor = inputs["labels"].roll(-1, dims=-1)
    following[..., -1] = IGNORED
    return following


def _next(values: Tensor) -> Tensor:
    shifted = values.roll(-1, dims=-1)
    shifted[..., -1] = False
    return shifted
