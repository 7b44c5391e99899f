"""Show a model calibration data, so that criteria have something to read."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_shrink.errors import MismatchError, NonFiniteError, RecipeError, ShrinkError
from hf_shrink.families import longest
from hf_shrink.learning import check_learns
from hf_shrink.lines import first_line
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
        MismatchError: a batch that the model cannot take.
        NonFiniteError: a loss is NaN or infinite.
    """
    learnt = 0
    with evaluating(model), recorder.watching(model):
        if recorder.wants_gradients:
            check_learns(model, "calibration")
        for index, batch in enumerate(batches):
            inputs = {name: value.to(model.device) for name, value in batch.items()}
            model.zero_grad(set_to_none=True)
            with torch.set_grad_enabled(recorder.wants_gradients), explained(model, inputs, f"calibration batch {index}"):
                loss = getattr(model(**inputs), "loss", None)
            if not recorder.wants_gradients:
                continue
            if loss is None:
                raise RecipeError(
                    f"calibration: no loss from a batch of {', '.join(sorted(batch))}; add labels to the batches."
                )
            if not _says_something(batch.get("labels")):
                continue  # its loss is 0 / 0
            if not bool(torch.isfinite(loss).all()):
                raise NonFiniteError(
                    f"calibration batch {index}: its loss is {loss.item()}; look at its labels, or at the weights."
                )
            loss.backward()
            recorder.observe_gradients()
            learnt += 1
    model.zero_grad(set_to_none=True)
    if recorder.wants_gradients and not learnt:
        raise RecipeError(
            f"calibration: no label counts in {len(batches)} batches, all are {_IGNORED}; every gradient is 0. Pass other rows."
        )


@contextmanager
def explained(model: Any, inputs: Mapping[str, Any], where: str) -> Iterator[None]:
    """Around a forward pass: a ``MismatchError`` with the shapes of ``inputs`` where it fails on them in words of its own."""
    try:
        yield
    except ShrinkError:
        raise
    except (ValueError, IndexError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "memory" in str(error):
            raise
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items() if isinstance(value, Tensor))
        raise MismatchError(
            f"{where}: {type(model).__name__} cannot take {shapes}: {first_line(error)}\n"
            "Pass batches of its own task, made by its own tokenizer."
        ) from error


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
            if limit is None or ids is None or ids.is_floating_point():
                continue
            outside = (ids >= limit) | ((ids < 0) if name == "input_ids" else (ids < 0) & (ids != _IGNORED))
            if bool(outside.any()):
                raise MismatchError(f"{where}: {name} {int(ids[outside][0])}, but the model has {limit}, 0 to {limit - 1}.")
        ids, positions = batch.get("input_ids"), longest(model)
        if ids is not None and positions is not None and ids.shape[-1] > positions:
            raise MismatchError(
                f"{where}: input_ids of {ids.shape[-1]} tokens, but the model has {positions} positions; truncate the texts."
            )
        found.append(dict(batch))
    return found


def _classes(model: Any, batch: Mapping[str, Tensor]) -> int | None:
    """How many classes, or tokens, a batch's labels may name; None where they are no such thing."""
    labels, name = batch.get("labels"), type(model).__name__
    if labels is None:
        return None
    if "Classification" in name:
        is_class = labels.dim() == 1 or "TokenClassification" in name
        return int(model.config.num_labels) if is_class and int(model.config.num_labels) > 1 else None
    head = model.get_output_embeddings()
    return None if head is None else int(head.weight.shape[0])


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
