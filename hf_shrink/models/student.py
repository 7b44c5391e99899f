"""Start a student from some of a model's own layers."""

import copy
import itertools
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_shrink.errors import RecipeError
from hf_shrink.families import family_of, layers_of


def kept_layers(total: int, layers: int | Sequence[int]) -> tuple[int, ...]:
    """Which of ``total`` layers stay, counted from 0.

    An int spreads them evenly from the first to the last, position ``i * (total - 1) / (layers - 1)`` rounded to the nearest
    layer and halves down: 3 of 6 are 0, 2, 5 (as DistilBERT's authors start theirs, arXiv:1910.01108, section 3); 1 is the
    first. Indices are taken as they are.

    Raises:
        RecipeError: none would stay, more than there are, an index out of range or not above the one before.
    """
    if isinstance(layers, int):
        if not 1 <= layers <= total:
            raise RecipeError(f"layers: cannot keep {layers} of {total} layers; 1 to {total} can stay.")
        gaps = max(layers - 1, 1)
        return tuple((2 * i * (total - 1) + gaps - 1) // (2 * gaps) for i in range(layers))
    kept = tuple(layers)
    if not kept:
        raise RecipeError(f"layers: an empty list keeps 0 of {total} layers; name at least one of 0 to {total - 1}.")
    outside = [index for index in kept if not 0 <= index < total]
    if outside:
        raise RecipeError(f"layers: there is no layer {outside[0]}; the model has {total}, 0 to {total - 1}.")
    if any(later <= earlier for earlier, later in itertools.pairwise(kept)):
        raise RecipeError(f"layers: {list(kept)} must rise from one to the next, without repeats.")
    return kept


def drop_layers(model: PreTrainedModel, layers: int | Sequence[int]) -> PreTrainedModel:
    """A smaller copy of ``model`` with only some of its layers.

    The copy shares no tensor with the original, which stays as it was. Its config is a stock one with fewer layers; lists in
    it with one entry a layer (``layer_types``) are cut alike, and what numbers a layer (``layer_idx``, for caches) follows.

    Args:
        model: of one of the known families, with any head.
        layers: how many, or which; see ``kept_layers``.

    Raises:
        RecipeError: an unknown family, or layers that the model does not have.
    """
    family = family_of(model, "layers")
    old = layers_of(model, family)
    kept = kept_layers(len(old), layers)
    memo: dict[int, object] = {}
    few = nn.ModuleList([copy.deepcopy(old[index], memo) for index in kept])
    few.train(old.training)
    memo[id(old)] = few  # deepcopy takes this for the copy of the list: dropped layers are never copied
    small = copy.deepcopy(model, memo)
    for position, layer in enumerate(few):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                setattr(module, "layer_idx", position)  # noqa: B010 - nn.Module types attributes as tensors
    _cut_config(small.config, family.num_layers, len(old), kept)
    return small


def _cut_config(config: PreTrainedConfig, key: str, total: int, kept: tuple[int, ...]) -> None:
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == total and "layer" in name:
            setattr(config, name, [value[index] for index in kept])
    setattr(config, key, len(kept))
