"""Show a model calibration data, so that criteria have something to read."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.statistics import Recorder


def calibrate(model: PreTrainedModel, recorder: Recorder, batches: Sequence[Mapping[str, Tensor]]) -> None:
    """Run ``batches`` through ``model`` without dropout, backward too where ``recorder`` reads gradients; no weight changes.

    Args:
        model: its gradients are cleared.
        recorder: of this model.
        batches: keyword arguments of its forward; with ``labels`` where gradients are read.

    Raises:
        RecipeError: gradients are needed, and a batch gives no loss.
    """
    with evaluating(model), recorder.watching(model):
        for batch in batches:
            inputs = {name: value.to(model.device) for name, value in batch.items()}
            if not recorder.wants_gradients:
                with torch.no_grad():
                    model(**inputs)
                continue
            model.zero_grad(set_to_none=True)
            loss = getattr(model(**inputs), "loss", None)
            if loss is None:
                raise RecipeError(
                    f"calibration: no loss from a batch of {', '.join(sorted(batch))}; add labels to the batches."
                )
            loss.backward()
            recorder.observe_gradients()
    model.zero_grad(set_to_none=True)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module is in the mode it was in."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
