"""Pruning at once, without training."""

import copy
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from hf_shrink.errors import RecipeError
from hf_shrink.finite import check_finite
from hf_shrink.pruning.calibrate import calibrate, checked_batches
from hf_shrink.pruning.config import PruningConfig, as_tuple
from hf_shrink.pruning.criteria import as_criterion
from hf_shrink.pruning.cuts import cut_at_once, reads_data
from hf_shrink.pruning.entries import named
from hf_shrink.pruning.layerwise import LayerTarget, check_targets, prune_layerwise
from hf_shrink.pruning.pruner import Pruner
from hf_shrink.pruning.reconstruct import reconstruct
from hf_shrink.pruning.renumbered import refuse_numbers
from hf_shrink.pruning.structures import check_prunable, groups_of
from hf_shrink.pruning.surgery import shrink

_WHEN = {"schedule", "begin_step", "end_step", "interval", "rounds", "penalty"}
_LAYERWISE = {"wanda", "sparsegpt"}


def prune(
    model: PreTrainedModel,
    config: PruningConfig | Sequence[PruningConfig],
    calibration: Iterable[Mapping[str, Tensor]] | None = None,
    fractions: Mapping[str, float] | None = None,
) -> PreTrainedModel:
    """A pruned copy of ``model``, at full sparsity at once: smaller for whole units, with zeros for single weights.

    Args:
        model: a float transformers model; stays as it is.
        config: one entry or several that do not overlap, without the words that say when.
        calibration: batches for criteria that need them; with ``labels`` where gradients or labels are read.
        fractions: what each mask of an entry with ``allocation: sensitivity`` loses, by the mask's name.

    Raises:
        RecipeError: targets that cannot be meant, or something that would be ignored: a schedule, a calibration nobody needs.
        MismatchError: a model that is quantised already or carries an adapter.
        NonFiniteError: a weight, an activation or a score is NaN or infinite.
    """
    configs = as_tuple(config)
    batches = None if calibration is None else checked_batches(calibration, model)
    check_at_once(configs, batches, fractions)
    check_prunable(model)
    check_finite(model, type(model).__name__)
    refuse_numbers(model, configs)
    check_targets_of(model, configs)  # every refusal comes before anything is computed
    cut = cut_at_once(model, configs, batches)
    later = check_targets_of(cut, configs, fractions)
    together = [entry for entry in configs if not _is_layerwise(entry) and not entry.is_cut_at_once]
    small = _masked(cut, together, batches, fractions) if together else copy.deepcopy(cut)
    if later:
        assert batches is not None, "checked"
        prune_layerwise(small, later, batches)
    return small


def check_targets_of(
    model: PreTrainedModel, configs: Sequence[PruningConfig], fractions: Mapping[str, float] | None = None
) -> dict[str, LayerTarget]:
    """What of ``configs`` is pruned layer by layer, by projection; errors as ``prune``. Works on a model on meta."""
    groups = [group for group in groups_of(model, configs, fractions) if _is_layerwise(group.config)]
    later = {g.name: LayerTarget(g.config.criterion, g.config.sparsity, g.config.pattern, g.config.reconstruct) for g in groups}
    if later:
        check_targets(model, later)
    return later


def _masked(
    model: PreTrainedModel,
    configs: Sequence[PruningConfig],
    batches: Sequence[Mapping[str, Tensor]] | None,
    fractions: Mapping[str, float] | None,
) -> PreTrainedModel:
    """Everything whose masks follow from the model as it is."""
    own = copy.deepcopy(model)  # gradients are left on what is measured
    pruner = Pruner(own, configs, total_steps=1, fractions=fractions)
    if pruner.recorder is not None and pruner.recorder.wants_data:
        assert batches is not None, "checked"
        calibrate(own, pruner.recorder, batches)
    pruner.update(1)
    pruner.apply()  # what is refitted has to see everything that goes
    refitted = [group for group in pruner.groups if group.config.reconstruct]
    if refitted:
        assert batches is not None, "checked"
        reconstruct(model, own, refitted, pruner.masks(), batches)
    return shrink(own, pruner.masks())


def _is_layerwise(config: PruningConfig) -> bool:
    """Whether one layer is pruned after the other, each on what the pruned ones before it put out."""
    fits = config.structure in ("unstructured", "n_of_m") and config.allocation == "uniform" and config.threshold is None
    return fits and config.criterion in _LAYERWISE


def check_at_once(
    configs: Sequence[PruningConfig],
    batches: Sequence[Mapping[str, Tensor]] | None = None,
    fractions: Mapping[str, float] | None = None,
) -> None:
    """Refuse, with a ``RecipeError``, what would be ignored or missing where ``prune`` acts at once."""
    if not configs:
        raise RecipeError("prune: no PruningConfig given; pass at least one.")
    for place, entry in named(configs):
        if ignored := sorted(entry.model_fields_set & _WHEN):
            raise RecipeError(f"{place}: {', '.join(ignored)} would be ignored without training; remove it.")
        if "when" in entry.model_fields_set and entry.when == "during":
            raise RecipeError(f"{place}: when: during would be ignored without training; remove it.")
        if entry.allocation == "sensitivity" and fractions is None:
            raise RecipeError(
                f"{place}.allocation: sensitivity needs fractions=, measured before: spend() of the README in Python.\n"
                "In a recipe the entry, with when: before, is measured when it runs."
            )
        if entry.structure == "vocabulary":
            raise RecipeError(f"{place}.structure: vocabulary cuts the tokenizer as well; a recipe does both.")
    needing = ["reconstruct" if entry.reconstruct else f"criterion {entry.criterion}" for entry in configs if needs_data(entry)]
    if batches is None and needing:
        raise RecipeError(f"calibration: {needing[0]} needs batches of data; pass calibration=[...].")
    if batches is not None and not batches:
        raise RecipeError("calibration: 0 batches; pass at least one.")
    if batches is not None and not needing:
        names = ", ".join(sorted({str(entry.criterion) for entry in configs}))
        raise RecipeError(f"calibration would be ignored: criterion {names} needs none; leave it out.")


def needs_data(config: PruningConfig) -> bool:
    """Whether ``prune`` needs calibration batches for this entry."""
    if config.is_cut_at_once:
        return reads_data(config)
    return config.reconstruct or _is_layerwise(config) or as_criterion(config.criterion).needs_data
