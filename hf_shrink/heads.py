"""Attention heads of a layer, read off its projections, and the attributes of its modules that have to agree with them."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_shrink.anatomy import Attention, Family
from hf_shrink.families import stacks_of
from hf_shrink.targets import features, projections


@dataclass(frozen=True)
class Heads:
    """One attention block's heads.

    Attributes:
        head_dim: features of one head.
        heads: query heads.
        kv_heads: key-value heads; each is shared by ``heads / kv_heads`` query heads.
    """

    head_dim: int
    heads: int
    kv_heads: int


def heads_of(layer: nn.Module, attention: Attention) -> Heads:
    """Counted in the projections, which keep their sizes when they are quantised; attributes may be out of date."""
    inside = projections(layer)
    head_dim = int(getattr(layer.get_submodule(attention.module), attention.head_dim))
    heads = features(inside[attention.output])[0] // head_dim
    kv_heads = heads if attention.packed else features(inside[attention.inputs[1]])[1] // head_dim
    return Heads(head_dim, heads, kv_heads)


def fit_attributes(model: Any, family: Family) -> None:
    """Let the attributes of every attention block in ``model`` say how many heads its projections hold, in place."""
    for stack, layers in stacks_of(model, family):
        for layer in layers:
            for attention in stack.attentions:
                found, module = heads_of(layer, attention), layer.get_submodule(attention.module)
                for name in attention.counts:
                    setattr(module, name, found.heads)
                for name in attention.widths:
                    setattr(module, name, found.heads * found.head_dim)


def set_head_dim(model: Any, family: Family, head_dim: int) -> None:
    """Let every attention block in ``model`` cut its projections into heads of ``head_dim`` features, in place.

    For models whose config says another number: there a head is ``hidden width / number of heads`` wide. Scores are scaled by
    the root of it, so the factor follows.
    """
    for stack, layers in stacks_of(model, family):
        for layer in layers:
            for attention in stack.attentions:
                module: Any = layer.get_submodule(attention.module)
                before = getattr(module, attention.head_dim)
                setattr(module, attention.head_dim, head_dim)
                if before != head_dim:
                    module.scaling *= (before / head_dim) ** 0.5
