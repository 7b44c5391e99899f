"""Whole layers leave: which ones are worth least, and a smaller copy without them."""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_shrink.anatomy import Stack
from hf_shrink.errors import NonFiniteError, RecipeError
from hf_shrink.families import family_of, stacks_of
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.influence import block_influence
from hf_shrink.pruning.lending import Lend, in_memory
from hf_shrink.pruning.masks import keep_top, removed_count
from hf_shrink.pruning.standing_in import stand_in
from hf_shrink.pruning.structures import check_prunable
from hf_shrink.pruning.worth import layer_scores

LayerChoice: TypeAlias = Literal["uniform", "first", "last", "alternate"]

_BY_NUMBER = "scale_attn_by_inverse_layer_idx"
"""A word of GPT-2's config."""

LAYER_CRITERIA: Mapping[str, Callable[[Any, Sequence[Mapping[str, Tensor]]], Tensor]] = {"block_influence": block_influence}
"""What scores a whole layer from calibration batches and no single weight: names beside those of ``CRITERIA``."""


def kept_layers(total: int, layers: int | Sequence[int], choice: LayerChoice = "uniform") -> tuple[int, ...]:
    """Which of ``total`` layers stay, counted from 0.

    Args:
        total: how many there are.
        layers: how many stay, or their indices, taken as they are.
        choice: which ones an int means. ``uniform`` spreads them from the first to the last, position
            ``i * (total - 1) / (layers - 1)`` rounded to the nearest layer and halves down: 3 of 6 are 0, 2, 5; 1 is the first.
            ``first`` and ``last`` are what they say. ``alternate`` takes every ``total // layers``-th from layer 0 on: 3 of 6
            are 0, 2, 4 (DistilBERT's "one layer out of two", arXiv:1910.01108, section 2).

    Raises:
        RecipeError: none would stay, more than there are, an index out of range or not above the one before.
    """
    if isinstance(layers, int):
        if not 1 <= layers <= total:
            raise RecipeError(f"layers: cannot keep {layers} of {total} layers; 1 to {total} can stay.")
        if choice == "uniform":
            gaps = max(layers - 1, 1)
            return tuple((2 * i * (total - 1) + gaps - 1) // (2 * gaps) for i in range(layers))
        begin, step = {"first": (0, 1), "last": (total - layers, 1), "alternate": (0, total // layers)}[choice]
        return tuple(range(begin, begin + layers * step, step))
    kept = tuple(layers)
    if not kept:
        raise RecipeError(f"layers: an empty list keeps 0 of {total} layers; name at least one of 0 to {total - 1}.")
    outside = [index for index in kept if not 0 <= index < total]
    if outside:
        raise RecipeError(f"layers: there is no layer {outside[0]}; the model has {total}, 0 to {total - 1}.")
    if any(later <= earlier for earlier, later in itertools.pairwise(kept)):
        raise RecipeError(f"layers: {list(kept)} must rise from one to the next, without repeats.")
    return kept


def drop_layers(
    model: PreTrainedModel,
    layers: int | Sequence[int],
    choice: LayerChoice = "uniform",
    *,
    reconstruct: Sequence[Mapping[str, Tensor]] | None = None,
) -> PreTrainedModel:
    """A smaller copy of ``model`` with only some of its layers, the same ones in an encoder and its decoder.

    The copy shares no tensor with the original, which stays as it was. Its config is a stock one with fewer layers; lists in
    it with one entry a layer (``layer_types``) are cut alike, and what numbers a layer (``layer_idx``, for caches) follows.

    Args:
        model: of one of the known families, with any head.
        layers, choice: how many and which; see ``kept_layers``.
        reconstruct: calibration batches; with them each layer that stays is fitted to stand for those up to the next one, see
            ``stand_in``.

    Raises:
        RecipeError: an unknown family, layers that the model does not have, T5's layer 0, which holds the position bias, or a
            GPT-2 whose layers compute by their number.
    """
    family = family_of(model, "layers")
    cuts = [(stack, old, kept_layers(len(old), layers, choice)) for stack, old in stacks_of(model, family)]
    memo: dict[int, object] = {}
    for stack, old, kept in cuts:
        if _first_is_needed(stack) and kept[0] != 0:
            raise RecipeError(f"layers: {list(kept)} drops layer 0, which holds the position bias of all; keep it.")
        if getattr(model.config, _BY_NUMBER, False) and kept != tuple(range(len(kept))):
            raise RecipeError(
                f"layers: {list(kept)} are numbered again, and by {_BY_NUMBER} this model divides a layer's attention by its "
                "number: when loaded again it would be another.\nKeep the first layers, or start from a model without it."
            )
        few = nn.ModuleList([copy.deepcopy(old[index], memo) for index in kept])
        few.train(old.training)
        memo[id(old)] = few  # deepcopy takes this for the copy of the list: dropped layers are never copied
    small = copy.deepcopy(model, memo)
    for stack, old, kept in cuts:
        for position, layer in enumerate(small.base_model.get_submodule(stack.layers).children()):
            for module in layer.modules():
                if isinstance(getattr(module, "layer_idx", None), int):
                    setattr(module, "layer_idx", position)  # noqa: B010 - nn.Module types attributes as tensors
        _cut_config(small.config, stack.num_layers, len(old), kept)
        own = getattr(small.base_model.get_submodule(stack.layers.rpartition(".")[0]), "config", small.config)
        if own is not small.config:  # an encoder and a decoder have configs of their own, in which theirs is the count
            _cut_config(own, "num_hidden_layers", len(old), kept)
    if reconstruct is not None:
        stand_in(model, small, [kept for _, _, kept in cuts], reconstruct)
    return small


def layers_to_keep(
    model: Any,
    config: PruningConfig,
    entry: str,
    batches: Sequence[Mapping[str, Tensor]] | None = None,
    lend: Lend = in_memory,
) -> tuple[int, ...]:
    """Which layers stay, counted from 0: those that the criterion scores highest.

    A layer's score is the mean over the weights of its projections, so that a larger layer is not worth more for its size;
    ``block_influence`` scores it by what it does. In an encoder and its decoder the layers of one number leave together and
    are worth the sum of both. T5's layer 0 always stays.

    Args:
        model: of one of the known families.
        config: with ``structure: layers``.
        entry: where it stands, as in ``pruning.0``, for errors.
        batches: calibration data for criteria that need it.
        lend: where the weights of a model on meta come from.

    Raises:
        RecipeError: all layers or none would stay, the criterion scores no layer, or needs data that is not there.
        MismatchError: the model is quantised or carries an adapter.
        NonFiniteError: a score is NaN or infinite.
    """
    check_prunable(model)
    total, removed = count_layers(model, entry), removed_layers(model, config, entry)
    if not removed:
        return tuple(range(total))
    if isinstance(config.criterion, str) and config.criterion in LAYER_CRITERIA:
        if not batches:
            raise RecipeError(f"{entry}.criterion: {config.criterion} needs batches of data; pass calibration=[...].")
        scores = LAYER_CRITERIA[config.criterion](model, batches)
    else:
        scores = layer_scores(model, config, entry, batches, lend)
    if not bool(torch.isfinite(scores).all()):
        raise NonFiniteError(f"{entry}: scores of layers are not finite; nothing was removed. Repair the weights.")
    if any(_first_is_needed(stack) for stack, _ in stacks_of(model, family_of(model, entry))):
        scores[0] = torch.inf
    return tuple(keep_top(scores, removed).nonzero().flatten().tolist())


def count_layers(model: Any, entry: str) -> int:
    """How many layers the stacks of ``model`` have; a ``RecipeError`` where an encoder and its decoder have not the same."""
    counts = [len(layers) for _, layers in stacks_of(model, family_of(model, f"{entry}.structure: layers"))]
    if len(set(counts)) > 1:
        raise RecipeError(
            f"{entry}.structure: layers: the same ones leave encoder and decoder, which have {' and '.join(map(str, counts))}."
        )
    return counts[0]


def removed_layers(model: Any, config: PruningConfig, entry: str) -> int:
    """How many layers leave; only shapes are read. Errors as in ``layers_to_keep``."""
    total = count_layers(model, entry)
    assert config.sparsity is not None
    removed = removed_count(config.sparsity, total)
    if removed == total:
        raise RecipeError(
            f"{entry}.sparsity: layer count: {config.sparsity} removes {total} of {total} layers; at least 1 must stay."
        )
    if config.sparsity > 0 and not removed:
        raise RecipeError(
            f"{entry}.sparsity: {config.sparsity} keeps all {total} layers; 1 of them is {1 / total:.3g}. Raise sparsity."
        )
    return removed


def _first_is_needed(stack: Stack) -> bool:
    return any(attention.position_bias for attention in stack.attentions)


def _cut_config(config: PreTrainedConfig, key: str, total: int, kept: tuple[int, ...]) -> None:
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == total and "layer" in name:
            setattr(config, name, [value[index] for index in kept])
    setattr(config, key, len(kept))
