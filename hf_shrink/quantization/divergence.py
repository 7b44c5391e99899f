"""How far a changed model's answers are from those of the model it was made from: KL on calibration data."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from hf_shrink.errors import MismatchError, NonFiniteError, RecipeError
from hf_shrink.lines import few, first_line

_NUMBERS = 2**25
"""Of the reference's answers at most so many are kept, 128 MiB: with a large vocabulary fewer positions are compared."""


class Divergence:
    """Mean KL(float model || changed model) in nats, over the positions of the batches that are no padding.

    Classes, labels and words alike: ``logits`` (one distribution a position, or one a label where several may be right), and
    ``start_logits`` and ``end_logits`` (one distribution a row). Where the answers are more than 128 MiB, evenly spaced
    positions of each batch stand for all.

    Args:
        model: the float model, whose answers are kept; in eval mode from here on.
        batches: keyword arguments of its forward pass.

    Raises:
        RecipeError: no batch, or a model whose answers are no distributions.
        MismatchError: a batch that it does not take.
        NonFiniteError: its answers are NaN or infinite.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]]) -> None:
        if not batches:
            raise RecipeError("bits: auto: no calibration batches to measure on.")
        keeps_labels = model.config.is_encoder_decoder  # they are what the decoder reads
        self._batches = [{name: t for name, t in batch.items() if keeps_labels or name != "labels"} for batch in batches]
        self._room = _NUMBERS // len(batches)
        self._expected = self._answers(model)
        if not all(bool(each.isfinite().all()) for each in self._expected):
            raise NonFiniteError("bits: auto: the float model's answers on the calibration rows are NaN or infinite.")

    @property
    def positions(self) -> int:
        """Distributions that are compared."""
        return sum(len(each) for each in self._expected)

    def of(self, model: PreTrainedModel) -> float:
        """Nats a position, at least 0; infinite where ``model`` gives no numbers."""
        total = 0.0
        for expected, found in zip(self._expected, self._answers(model), strict=True):
            change = expected - found.to(expected.device)  # a training may have moved the model
            total += float((expected.exp() * change).sum(dtype=torch.float64))
        return max(total / self.positions, 0.0) if total == total else float("inf")

    @torch.no_grad()
    def _answers(self, model: PreTrainedModel) -> list[Tensor]:
        """Float32 log-probabilities of each batch, ``[positions, classes]``."""
        model.eval()  # type: ignore[no-untyped-call]
        return [_log_probabilities(model, batch, self._room) for batch in self._batches]


def _log_probabilities(model: PreTrainedModel, batch: Mapping[str, Tensor], room: int) -> Tensor:
    try:
        outputs: Any = model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
    except (TypeError, ValueError, IndexError) as error:
        raise MismatchError(
            f"calibration: {type(model).__name__} does not take a batch of {few(batch)}: {first_line(error)}\n"
            "Give the keyword arguments of its forward pass."
        ) from error
    if "start_logits" in outputs:
        return torch.cat([F.log_softmax(outputs[name].float(), dim=-1) for name in ("start_logits", "end_logits")])
    logits = outputs.get("logits")
    if logits is None or logits.shape[-1] < 2 or model.config.problem_type == "regression":
        raise RecipeError(f"bits: auto: {type(model).__name__} gives no probabilities to compare; use bits: 4 or 8.")
    mask = batch.get("attention_mask")
    rows = logits[mask.bool()] if mask is not None and mask.shape == logits.shape[:-1] else logits.flatten(0, -2)
    if (step := -(-rows.numel() // room)) > 1:
        rows = rows[::step]
    if model.config.problem_type == "multi_label_classification":
        return torch.stack([F.logsigmoid(rows.float()), F.logsigmoid(-rows.float())], dim=-1).flatten(0, -2)
    return F.log_softmax(rows.float(), dim=-1)
