"""Units that leave a model whole: feed-forward neurons and attention heads, with every parameter that belongs to them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import nn

from hf_shrink.anatomy import Attention, Family, Stack
from hf_shrink.families import named_layers, stack_by_layer
from hf_shrink.heads import heads_of
from hf_shrink.pruning.masks import removed_count
from hf_shrink.pruning.pieces import Piece
from hf_shrink.targets import features, projections

Kind: TypeAlias = Literal["ffn", "heads"]

NOUNS: dict[str, str] = {"ffn": "neurons", "heads": "heads"}


@dataclass(frozen=True)
class Units:
    """The units under one mask.

    Attributes:
        name: of the mask.
        kind: neurons or heads.
        owner: the layer or attention block, or the list of layers where a head is the same one in all of them.
        modules: full names of the projections they run through.
        count: how many there are. Where queries share keys and values, a unit is a key-value head with its queries.
        width: features of one unit at the projection that reads it.
        pieces: the parameters they own.
    """

    name: str
    kind: Kind
    owner: str
    modules: tuple[str, ...]
    count: int
    width: int
    pieces: tuple[Piece, ...]


def units_of(model: Any, family: Family, kind: Kind) -> list[Units]:
    """All neurons or heads of ``model``, a group for each mask; works on a model on the meta device."""
    stacks = stack_by_layer(model, family)
    layers = named_layers(model, family)
    if kind == "ffn":
        return [_neurons(name, layer, stacks[name]) for name, layer in layers.items()]
    found: dict[str, Units] = {}
    for name, layer in layers.items():
        for attention in stacks[name].attentions:
            units = _heads(name, layer, attention)
            before = found.get(units.name)
            found[units.name] = units if before is None else _joined(before, units)
    return list(found.values())


def kept_units(count: int, *, sparsity: float, multiple: int) -> int:
    """The multiple of ``multiple`` nearest to ``(1 - sparsity) * count``; never below ``multiple`` nor above ``count``."""
    if sparsity == 0.0:
        return count
    kept = count - removed_count(sparsity, count) if multiple == 1 else multiple * round((1 - sparsity) * count / multiple)
    return min(max(kept, multiple), count)


def multiple_of(width: int, round_to: int) -> int:
    """The least number of units whose features together are a multiple of ``round_to``."""
    return round_to // math.gcd(round_to, width)


def _neurons(name: str, layer: nn.Module, stack: Stack) -> Units:
    inside = projections(layer)
    inputs = [path for path in stack.ffn_in if path in inside]
    pieces = [piece for path in inputs for piece in _pieces(name, path, layer, "output")]
    pieces += _pieces(name, stack.ffn_out, layer, "input")
    modules = tuple(f"{name}.{path}" for path in (*inputs, stack.ffn_out))
    return Units(f"{name}:ffn", "ffn", name, modules, features(inside[stack.ffn_out])[0], 1, tuple(pieces))


def _heads(name: str, layer: nn.Module, attention: Attention) -> Units:
    found = heads_of(layer, attention)
    per_unit = found.heads // found.kv_heads * found.head_dim  # features of all queries that share one key and value
    pieces: list[Piece] = []
    for position, path in enumerate(attention.inputs):
        blocks, inner = {"thirds": (3, found.head_dim), "heads": (1, 3 * found.head_dim)}.get(
            attention.packed, (1, per_unit if position == 0 else found.head_dim)
        )
        pieces += _pieces(name, path, layer, "output", blocks, inner)
    pieces += _pieces(name, attention.output, layer, "input", 1, per_unit)
    if attention.position_bias and (table := _submodule(layer, attention.position_bias)) is not None:
        pieces.append(Piece(f"{name}.{attention.position_bias}.weight", table, "weight", "input"))
    modules = tuple(f"{name}.{path}" for path in (*attention.inputs, attention.output))
    owner = f"{name.rpartition('.')[0]}.*.{attention.module}" if attention.shared else f"{name}.{attention.module}"
    return Units(f"{owner}:heads", "heads", owner, modules, found.kv_heads, per_unit, tuple(pieces))


def _joined(first: Units, more: Units) -> Units:
    """One mask for the heads of all layers of a stack."""
    assert (first.count, first.width) == (more.count, more.width), "such heads only ever leave all layers together"
    return Units(
        first.name, first.kind, first.owner, first.modules + more.modules, first.count, first.width, first.pieces + more.pieces
    )


def _pieces(
    layer_name: str, path: str, layer: nn.Module, axis: Literal["input", "output"], blocks: int = 1, inner: int = 1
) -> Iterator[Piece]:
    module = projections(layer)[path]
    yield Piece(f"{layer_name}.{path}.weight", module, "weight", axis, blocks, inner)
    if axis == "output" and module.bias is not None:
        yield Piece(f"{layer_name}.{path}.bias", module, "bias", axis, blocks, inner)


def _submodule(layer: nn.Module, path: str) -> nn.Embedding | None:
    try:
        found = layer.get_submodule(path)
    except AttributeError:
        return None
    assert isinstance(found, nn.Embedding)
    return found
