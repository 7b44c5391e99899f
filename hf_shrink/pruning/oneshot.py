"""Pruning at once, without training."""

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedModel

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.config import PruningConfig, as_tuple
from hf_shrink.pruning.criteria import CRITERIA
from hf_shrink.pruning.pruner import Pruner
from hf_shrink.pruning.surgery import shrink

_WHEN = {"schedule", "begin_step", "end_step", "interval"}


def prune(
    model: PreTrainedModel, config: PruningConfig | Sequence[PruningConfig], calibration: Iterable[Any] | None = None
) -> PreTrainedModel:
    """A pruned copy of ``model``, at full sparsity at once: smaller for ffn, with zeros for unstructured.

    Args:
        model: a float transformers model; stays as it is.
        config: one entry or several that do not overlap, without the words that say when.
        calibration: batches for criteria that need them.

    Raises:
        RecipeError: targets that cannot be meant, or something that would be ignored: a schedule, a calibration nobody needs.
        MismatchError: a model that is quantised already or carries an adapter.
        NonFiniteError: a weight is NaN or infinite.
    """
    configs = as_tuple(config)
    if not configs:
        raise RecipeError("prune: no PruningConfig given; pass at least one.")
    for index, entry in enumerate(configs):
        if ignored := sorted(entry.model_fields_set & _WHEN):
            raise RecipeError(f"pruning.{index}: {', '.join(ignored)} would be ignored without training; remove it.")
    if calibration is not None and not any(CRITERIA[entry.criterion].needs for entry in configs):
        names = ", ".join(sorted({entry.criterion for entry in configs}))
        raise RecipeError(f"calibration would be ignored: criterion {names} needs none; leave it out.")
    pruner = Pruner(model, configs, total_steps=1)
    pruner.update(1)
    return shrink(model, pruner.masks())
