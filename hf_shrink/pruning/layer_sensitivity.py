"""Quality lost without one whole layer, for each layer in turn."""

from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedModel

from hf_shrink.families import family_of, stacks_of
from hf_shrink.pruning.layers import count_layers, drop_layers
from hf_shrink.pruning.sensitivity_table import Point
from hf_shrink.targets import projections

Quality = Callable[[PreTrainedModel, str], tuple[float, Mapping[str, float]]]
"""``(model, what) -> quality, others``; ``what`` is for errors."""


def layer_points(
    model: Any,
    quality: Quality,
    dense: float,
    *,
    latency: Callable[[PreTrainedModel], float] | None = None,
    whole: float | None = None,
) -> list[Point]:
    """A point for each layer that can leave; in an encoder and its decoder the layers of one number leave together.

    Args:
        model: in eval mode, which its copies take over, of a known family; stays as it is, copies without one layer are scored.
        quality: of a model.
        dense: of the whole one.
        latency: milliseconds of a model.
        whole: of the whole one.

    Raises:
        RecipeError: the family is unknown, or encoder and decoder have other numbers of layers.
    """
    entry, points = "sensitivity", []
    total, width = count_layers(model, entry), _width(model)
    first = any(a.position_bias for stack, _ in stacks_of(model, family_of(model, entry)) for a in stack.attentions)
    for index in range(int(first), total if total > 1 else 0):
        small = drop_layers(model, [other for other in range(total) if other != index])
        found, others = quality(small, f"the model without layer {index}")
        points.append(
            Point(
                group=f"layer {index}",
                structure="layers",
                kind="whole layers",
                layer=index,
                fraction=1.0,
                removed=1,
                entries=1,
                quality=found,
                loss=dense - found,
                parameters=model.num_parameters() - small.num_parameters(),
                macs=width - _width(small),
                milliseconds=None if latency is None or whole is None else whole - latency(small),
                others=others,
            )
        )
    return points


def _width(model: Any) -> int:
    return sum(layer.weight.numel() for layer in projections(model).values())
