"""What is cut at once and before training, because no mask can stand for it: whole layers and the hidden width."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.config import PruningConfig, as_tuple
from hf_shrink.pruning.criteria import as_criterion
from hf_shrink.pruning.hidden import cut_hidden, hidden_to_keep, hidden_width
from hf_shrink.pruning.layers import LAYER_CRITERIA, count_layers, drop_layers, layers_to_keep, removed_layers
from hf_shrink.pruning.sums import GIVEN
from hf_shrink.tables import own_name

_STRUCTURES = ("layers", "hidden")


def cut_at_once(
    model: PreTrainedModel,
    configs: PruningConfig | Sequence[PruningConfig],
    calibration: Sequence[Mapping[str, Tensor]] | None = None,
) -> PreTrainedModel:
    """A smaller copy without the layers and the dimensions that ``configs`` take out, in their order; other entries are left.

    Args:
        model: a float model of a known family; stays as it is, and is what comes back where there is nothing to cut.
        configs: one entry or several.
        calibration: batches for criteria that need them; see ``reads_data``.

    Raises:
        RecipeError: two entries of one structure, or what ``layers_to_keep`` and ``hidden_to_keep`` refuse.
        MismatchError: the model is quantised, carries an adapter, or its config cannot say the width.
        NonFiniteError: a score is NaN or infinite.
    """
    for entry, config in cuts_of(configs):
        if config.structure == "layers":
            fitted = calibration if config.reconstruct else None
            model = drop_layers(model, layers_to_keep(model, config, entry, calibration), reconstruct=fitted)
        else:
            model = cut_hidden(model, hidden_to_keep(model, config, entry))
    return model


def outline_cuts(model: PreTrainedModel, configs: PruningConfig | Sequence[PruningConfig]) -> PreTrainedModel:
    """The shapes that ``cut_at_once`` leaves, for a model on meta: which layers and dimensions stay means nothing."""
    for entry, config in cuts_of(configs):
        if config.structure == "layers":
            model = drop_layers(model, range(count_layers(model, entry) - removed_layers(model, config, entry)))
        else:
            model = cut_hidden(model, torch.arange(model.config.hidden_size) < hidden_width(model, config, entry))
    return model


def cut_words(model: Any, configs: PruningConfig | Sequence[PruningConfig]) -> list[str]:
    """One sentence for each entry that is cut at once, before training; only shapes of ``model`` are read."""
    words = []
    for entry, config in cuts_of(configs):
        by = own_name(config.criterion)
        if config.structure == "layers":
            total = count_layers(model, entry)
            then = ", and fits the others to stand for them" if config.reconstruct else ""
            words.append(f"drops {removed_layers(model, config, entry)} of {total} layers, by {by}{then}")
        else:
            before, width = model.config.hidden_size, hidden_width(model, config, entry)
            words.append(f"cuts the hidden width from {before} to {width}, by {by}")
    return words


def reads_data(config: PruningConfig) -> bool:
    """Whether an entry for layers or the hidden width needs calibration batches."""
    if config.structure not in _STRUCTURES:
        return False
    if config.reconstruct or (isinstance(config.criterion, str) and config.criterion in LAYER_CRITERIA):
        return True
    return bool(set(as_criterion(config.criterion).needs) - GIVEN)


def cuts_of(configs: PruningConfig | Sequence[PruningConfig]) -> list[tuple[str, PruningConfig]]:
    """The entries that are cut here and where they stand, as in ``pruning.0``."""
    found: dict[str, tuple[str, PruningConfig]] = {}
    for index, config in enumerate(as_tuple(configs)):
        if config.structure not in _STRUCTURES:
            continue
        entry = f"pruning.{index}"
        if config.structure in found:
            raise RecipeError(
                f"{found[config.structure][0]} and {entry} both cut structure: {config.structure}; keep one of them."
            )
        found[config.structure] = (entry, config)
    return list(found.values())
