"""How much of an optimizer step one micro-batch is, and whether the model's own loss knows."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_shrink.distillation.positions import IGNORED, is_about_spans

_UNSHIFTED = {"XLNetLMHeadModel", "XLMWithLMHeadModel"}
"""Language models among the causal ones whose labels stand at the position they are predicted from."""


def labels_kept(inputs: Mapping[str, Any], *, shifts_labels: bool) -> Tensor:
    """How many labels of one micro-batch the task loss averages over, a whole number in a scalar tensor.

    The same rule by which ``Trainer`` counts those of the whole step: all but -100 and, where the loss moves the labels by
    one, without the first of each row. Of questions about texts, the rows whose answer lies in the text.
    """
    labels: Tensor | None = answers_in(inputs) if is_about_spans(inputs) else inputs.get("shift_labels")
    if labels is None:
        labels = inputs["labels"][..., 1:] if shifts_labels else inputs["labels"]
    return labels.ne(IGNORED).sum()


def can_count(inputs: Mapping[str, Any]) -> bool:
    """Whether a batch holds labels that ``labels_kept`` counts."""
    return is_about_spans(inputs) or any(isinstance(inputs.get(name), Tensor) for name in ("shift_labels", "labels"))


def answers_in(inputs: Mapping[str, Any]) -> Tensor:
    """Where the answer to each question begins, ``[batch]``; -100 where it lies behind the text, which the loss leaves out."""
    starts: Tensor = inputs["start_positions"]
    return starts.masked_fill(starts >= inputs["input_ids"].shape[-1], IGNORED)


def predicts_next_token(model: nn.Module) -> bool:
    """Whether the logits at a position are about the token after it.

    ``Trainer`` asks the model's loss type, which GPT-2's language model does not set.
    """
    return type(model).__name__ in {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()} - _UNSHIFTED


def honours_count(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether the model's loss divides by ``num_items_in_batch``: many heads take the argument and ignore it.

    Told by two forwards without gradient that differ in that number alone. The mode of the model and the state of the
    random generators are as they were after.

    Args:
        model: on the device of the inputs.
        inputs: a micro-batch with at least one label that counts.
    """
    mode, device = model.training, next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        model.eval()
        few, many = (model(**inputs, num_items_in_batch=count)["loss"] for count in (10, 20))
        model.train(mode)
    return not torch.isclose(few.float(), many.float(), rtol=0.02)  # two of bfloat16's last bits; a division halves it
