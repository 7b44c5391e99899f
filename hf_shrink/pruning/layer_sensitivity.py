"""Quality lost to what no mask stands for: each whole layer in turn, and a narrower hidden width."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.families import family_of, stacks_of
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.hidden import cut_hidden, hidden_to_keep, rounded_width
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
    total = count_layers(model, entry)
    first = any(a.position_bias for stack, _ in stacks_of(model, family_of(model, entry)) for a in stack.attentions)
    for index in range(int(first), total if total > 1 else 0):
        try:
            small = drop_layers(model, [other for other in range(total) if other != index])
        except RecipeError:  # others behind it compute by their number
            continue
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
                **_saved(model, small, latency, whole),
                others=others,
            )
        )
    return points


def hidden_points(
    model: Any,
    config: PruningConfig,
    fractions: Sequence[float],
    quality: Quality,
    dense: float,
    *,
    latency: Callable[[PreTrainedModel], float] | None = None,
    whole: float | None = None,
) -> list[Point]:
    """A point for each narrower hidden width that ``fractions`` leave after rounding.

    What rounds to the whole width is left out, and what a config of this model cannot say.

    Args:
        model: as in ``layer_points``; narrower copies are scored.
        config: says by which criterion and to which multiple.
        fractions: of the width, above 0 and below 1.
        quality, dense, latency, whole: as in ``layer_points``.

    Raises:
        RecipeError: the family is unknown, or the criterion scores no weights or needs data.
    """
    entry, before, points = "sensitivity", int(model.config.hidden_size), []
    widths = {rounded_width(model, config, entry, fraction)[0]: fraction for fraction in fractions}
    for width, fraction in sorted(widths.items(), reverse=True):
        if width == before:
            continue
        keep = hidden_to_keep(model, config.model_copy(update={"sparsity": fraction}), entry)
        try:
            small = cut_hidden(model, keep)
        except MismatchError:  # a width that no config of this model can say; another may do
            continue
        found, others = quality(small, f"the model of hidden width {width}")
        points.append(
            Point(
                group="hidden width",
                structure="hidden",
                kind="hidden width",
                layer=None,
                fraction=1 - width / before,
                removed=before - width,
                entries=before,
                quality=found,
                loss=dense - found,
                **_saved(model, small, latency, whole),
                others=others,
            )
        )
    return points


def _saved(model: Any, small: Any, latency: Callable[[PreTrainedModel], float] | None, whole: float | None) -> dict[str, Any]:
    """What ``small`` has less of than ``model``: parameters, multiply-accumulates a token, milliseconds."""
    return {
        "parameters": model.num_parameters() - small.num_parameters(),
        "macs": _width(model) - _width(small),
        "milliseconds": None if latency is None or whole is None else whole - latency(small),
    }


def _width(model: Any) -> int:
    return sum(layer.weight.numel() for layer in projections(model).values())
