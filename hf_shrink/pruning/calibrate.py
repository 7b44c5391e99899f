"""Show a model calibration data, so that criteria have something to read."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_shrink.errors import MismatchError, NonFiniteError, RecipeError
from hf_shrink.learning import check_learns
from hf_shrink.pruning.statistics import Recorder

_IGNORED = -100  # the label of what no loss counts


def calibrate(model: PreTrainedModel, recorder: Recorder, batches: Sequence[Mapping[str, Tensor]]) -> None:
    """Run ``batches`` through ``model`` without dropout, backward too where ``recorder`` reads gradients; no weight changes.

    Args:
        model: its gradients are cleared.
        recorder: of this model.
        batches: keyword arguments of its forward; with ``labels`` where gradients are read.

    Raises:
        RecipeError: gradients are needed, and a batch gives no loss, or in none of them a label counts.
        NonFiniteError: a loss is NaN or infinite.
    """
    learnt = 0
    with evaluating(model), recorder.watching(model):
        if recorder.wants_gradients:
            check_learns(model, "calibration")
        for index, batch in enumerate(batches):
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
            if not _says_something(batch.get("labels")):
                continue  # its loss is 0 / 0
            if not bool(torch.isfinite(loss).all()):
                raise NonFiniteError(f"calibration batch {index}: its loss is {loss.item()}; look at its labels, or at the weights.")
            loss.backward()
            recorder.observe_gradients()
            learnt += 1
    model.zero_grad(set_to_none=True)
    if recorder.wants_gradients and not learnt:
        raise RecipeError(
            f"calibration: no label counts in {len(batches)} batches, all are {_IGNORED}: every gradient is 0. Pass rows with labels."
        )


def _says_something(labels: Tensor | None) -> bool:
    """Whether a label is there that a loss would count; where labels have other names, the loss knows."""
    return labels is None or labels.is_floating_point() or bool(labels.ne(_IGNORED).any())


def checked_batches(calibration: Iterable[Any], model: Any) -> list[dict[str, Tensor]]:
    """The batches as a list, each of them what ``model`` can take; a ``RecipeError`` or ``MismatchError`` says what is not."""
    found: list[dict[str, Tensor]] = []
    accepted = inspect.signature(model.forward).parameters
    for index, batch in enumerate(calibration):
        where = f"calibration batch {index}"
        if not isinstance(batch, Mapping) or not all(isinstance(value, Tensor) for value in batch.values()):
            raise RecipeError(f"{where}: got {type(batch).__name__}; pass a mapping of tensors, the model's keyword arguments.")
        if odd := [name for name in batch if name not in accepted]:
            raise RecipeError(f"{where}: {type(model).__name__} takes no {odd[0]!r}; remove the key.")
        if any(value.dim() == 0 or len(value) == 0 for value in batch.values()) or not batch:
            raise RecipeError(f"{where}: has no rows; leave it out.")
        limits = {"input_ids": getattr(model.config, "vocab_size", None), "labels": _classes(model, batch)}
        for name, limit in limits.items():
            ids = batch.get(name)
            if limit is not None and ids is not None and not ids.is_floating_point() and int(ids.max()) >= limit:
                raise MismatchError(f"{where}: {name} {int(ids.max())}, but the model has {limit}, 0 to {limit - 1}.")
        found.append(dict(batch))
    return found


def _classes(model: Any, batch: Mapping[str, Tensor]) -> int | None:
    """How many classes a batch's labels may name, where they are classes of samples."""
    labels = batch.get("labels")
    is_classifier = "Classification" in type(model).__name__
    return int(model.config.num_labels) if labels is not None and labels.dim() == 1 and is_classifier else None


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
