"""From masks to a physically smaller model: a copy whose modules are cut, never a parameter resized in place."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_shrink.anatomy import Family
from hf_shrink.errors import MismatchError
from hf_shrink.families import FAMILIES, stacks_of
from hf_shrink.heads import fit_attributes, heads_of
from hf_shrink.pruning.pieces import Piece
from hf_shrink.pruning.units import NOUNS, Units, units_of
from hf_shrink.targets import features, oriented, projections


@torch.no_grad()
def shrink(model: PreTrainedModel, masks: Mapping[str, Tensor]) -> PreTrainedModel:
    """A smaller copy with the outputs of ``model`` after masking; ``model`` stays as it is.

    Masks of projections become zeros, masks of units take them out. Dtype, device, training mode, ``requires_grad`` and tied
    weights are kept. Where a stock config can say what is left, the config is changed to it.

    Args:
        model: a float model of a known family where units are masked.
        masks: True = keep, by name, as ``Pruner.masks()`` gives them: ``[out, in]`` for a projection,
            ``[neurons]`` for ``LAYER:ffn``, ``[heads]`` for ``ATTENTION:heads``.

    Raises:
        MismatchError: a mask names nothing in the model, has another shape than it, or keeps nothing.
    """
    small = copy.deepcopy(model)
    modules = dict(small.named_modules())
    family = FAMILIES.get(small.config.model_type)
    kinds = {name.rpartition(":")[2] for name in masks if ":" in name}
    units = {} if family is None else {u.name: u for kind in kinds & NOUNS.keys() for u in units_of(small, family, kind)}  # type: ignore[arg-type]
    for name, mask in masks.items():
        module = modules.get(name)
        if isinstance(module, nn.Linear | Conv1D):
            _zero(name, module, mask)
        elif name in units:
            _cut_units(units[name], mask)
        else:
            raise MismatchError(
                f"mask {name!r} names no projection and no units of {type(model).__name__}; it is another model's."
            )
    if family is not None and units:
        fit_attributes(small, family)
        say_in_config(small, family)
    return small


def say_in_config(model: Any, family: Family) -> None:
    """Write into the config of ``model`` what all its layers have in common and a stock config can say, in place."""
    layers = [(stack, layer) for stack, found in stacks_of(model, family) for layer in found]
    widths = {features(projections(layer)[stack.ffn_out])[0] for stack, layer in layers}
    if len(widths) == 1 and widths != {configured_width(model.config, family)}:
        setattr(model.config, family.ffn_width, widths.pop())
    counts = {heads_of(layer, attention) for stack, layer in layers for attention in stack.attentions}
    if len(counts) == 1:
        found = counts.pop()
        _say(model, _head_words(model.config, family, found.head_dim, found.heads, found.kv_heads))


def configured_width(config: Any, family: Family) -> int:
    """The number of feed-forward neurons that a model built from ``config`` has in each layer."""
    width: int | None = getattr(config, family.ffn_width)
    return 4 * int(config.hidden_size) if width is None else width  # GPT-2's n_inner: None


def _head_words(config: Any, family: Family, head_dim: int, heads: int, kv_heads: int) -> dict[str, int]:
    """Config keys that say these heads; none where no stock config can."""
    words = {family.num_heads: heads}
    if family.num_kv_heads is not None:
        words[family.num_kv_heads] = kv_heads
    said = None if family.head_dim is None else getattr(config, family.head_dim, None)
    if (said or config.hidden_size // heads) == head_dim and all(getattr(config, key) == n for key, n in words.items()):
        return {}
    if family.head_dim is not None:
        return words | {family.head_dim: head_dim}
    return words if heads * head_dim == config.hidden_size else {}


def _say(model: Any, words: Mapping[str, int]) -> None:
    """Set keys of the config, unless transformers refuses such a config: then it stays, and the loader is told the shapes."""
    if not words:
        return
    config = copy.deepcopy(model.config)
    for key, value in words.items():
        setattr(config, key, value)
    try:
        with torch.device("meta"):
            type(model)(type(config).from_dict(config.to_dict()))
    except (ValueError, StrictDataclassError):
        return
    for key, value in words.items():
        setattr(model.config, key, value)


def _zero(name: str, module: nn.Linear | Conv1D, mask: Tensor) -> None:
    weight = oriented(module)
    if mask.shape != weight.shape:
        raise _wrong_shape(name, mask, weight.shape)
    weight.mul_(mask.to(weight.device))


def _cut_units(units: Units, mask: Tensor) -> None:
    if mask.shape != (units.count,):
        raise _wrong_shape(units.name, mask, torch.Size([units.count]))
    if not bool(mask.any()):
        raise MismatchError(f"mask {units.name!r} keeps 0 of {mask.numel()} {NOUNS[units.kind]}; at least 1 must stay.")
    for piece in units.pieces:
        cut(piece, mask)


def cut(piece: Piece, mask: Tensor) -> None:
    """Give the module of ``piece`` a new parameter without the units that ``mask`` removes, and say so in its sizes."""
    module, before = piece.module, piece.parameter
    keep = piece.flat(mask).nonzero().flatten().to(before.device)
    values = before.detach().index_select(piece.dim, keep)
    setattr(module, piece.attribute, nn.Parameter(values, requires_grad=before.requires_grad))
    if piece.attribute == "bias":
        return
    if isinstance(module, nn.Embedding):
        module.embedding_dim = values.shape[1]
    elif isinstance(module, Conv1D):
        module.nx, module.nf = values.shape
    else:
        module.out_features, module.in_features = values.shape


def _wrong_shape(name: str, mask: Tensor, shape: torch.Size) -> MismatchError:
    return MismatchError(f"mask {name!r}: shape {list(mask.shape)}, the model has {list(shape)}; pass the masks made for it.")
