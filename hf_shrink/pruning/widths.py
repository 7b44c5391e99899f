"""How a config says a hidden width, and which parameters of a model are as wide."""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_shrink.anatomy import Family
from hf_shrink.errors import MismatchError
from hf_shrink.families import family_of, stacks_of
from hf_shrink.heads import heads_of
from hf_shrink.pruning.surgery import configured_width
from hf_shrink.pruning.units import units_of
from hf_shrink.pruning.worth import Dims

_FOLLOWERS = ("embedding_size",)
"""Config keys that follow the hidden width where they are equal to it."""


def hidden_dims(model: Any) -> Dims:
    """For each parameter, under each of its names, which of its dimensions run over the hidden width; others are left out.

    Raises:
        MismatchError: parameters that a model built from the config does not have, or of another width than it says.
    """
    family, hidden = family_of(model, "hidden"), int(model.config.hidden_size)
    plain = _with_words(model.config, _pinned(model, family))
    twice = _with_words(plain, _width_words(plain, 2 * hidden))
    narrow, wide = (dict(named_parameters(blueprint(config, type(model)))) for config in (plain, twice))
    of_heads = {(piece.name, piece.dim) for units in units_of(model, family, "heads") for piece in units.pieces}
    found: dict[str, tuple[int, ...]] = {}
    for name, parameter in named_parameters(model):
        if name not in narrow or name not in wide:
            raise MismatchError(f"{name}: no part of a {type(model).__name__} that is built from its config.")
        sizes = zip(narrow[name].shape, wide[name].shape, strict=True)
        dims = tuple(dim for dim, (one, two) in enumerate(sizes) if one != two and (name, dim) not in of_heads)
        if any(parameter.shape[dim] != hidden for dim in dims):
            raise MismatchError(f"{name} {list(parameter.shape)}: its config says a hidden width of {hidden}.")
        if dims:
            found[name] = dims
    return found


def words_for(model: Any, family: Family, width: int) -> dict[str, int]:
    """Config keys that say ``width`` and leave the rest of the model as it is."""
    words = _pinned(model, family) | _width_words(model.config, width)
    if is_accepted(model, words):
        return words
    heads = int(getattr(model.config, family.num_heads))
    if family.head_dim is not None:
        raise MismatchError(f"hidden width {width}: the config of {type(model).__name__} takes multiples of {heads} heads.")
    # Such a config cannot say how large a head is, so heads are recorded as shapes anyway: the number only has to divide.
    return words | {family.num_heads: math.gcd(width, heads)}


def _pinned(model: Any, family: Family) -> dict[str, int]:
    """What a config may derive from the hidden width, said outright."""
    stack, layers = stacks_of(model, family)[0]
    words = {family.ffn_width: configured_width(model.config, family)}
    if family.head_dim is not None or hasattr(model.config, "rope_parameters"):  # rotary positions are as wide as a head
        words[family.head_dim or "head_dim"] = heads_of(layers[0], stack.attentions[0]).head_dim
    return words


def _width_words(config: PreTrainedConfig, width: int) -> dict[str, int]:
    followers = {key: width for key in _FOLLOWERS if getattr(config, key, None) == config.hidden_size}
    return {"hidden_size": width, **followers}


def _with_words(config: PreTrainedConfig, words: Mapping[str, int]) -> PreTrainedConfig:
    changed = copy.deepcopy(config)
    for key, value in words.items():
        setattr(changed, key, value)
    return changed


def is_accepted(model: Any, words: Mapping[str, int]) -> bool:
    """Whether transformers builds a model from the config with ``words``."""
    config = _with_words(model.config, words)
    try:
        blueprint(type(config).from_dict(config.to_dict()), type(model))
    except (ValueError, StrictDataclassError):
        return False
    return True


def blueprint(config: PreTrainedConfig, kind: type[PreTrainedModel]) -> PreTrainedModel:
    """What plain transformers builds from the config: shapes and numbers, no weights."""
    with torch.device("meta"):
        return kind(copy.deepcopy(config))


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by name, a tied one under each of its names."""
    return model.named_parameters(remove_duplicate=False)
