"""Spend a budget where it costs the least quality, from what was measured of each mask alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeAlias

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.pieces import Group
from hf_shrink.pruning.sensitivity import counts_of, macs_each, parameters_each, whole_groups
from hf_shrink.pruning.sensitivity_table import Point, Sensitivity

Budget: TypeAlias = Literal["parameters", "macs", "latency"]

_CLOSE = 1e-9
"""Of the total: what is nearer to the target than this has reached it, sums of floats being what they are."""


class Stop(NamedTuple):
    """A place on a mask's curve: entries removed, what that saves, what it loses."""

    removed: int
    cost: float
    loss: float


@dataclass(frozen=True)
class Curve:
    """What one mask saves and loses, linear between its stops.

    Attributes:
        stops: from (0, 0, 0), saving and loss never falling.
        entries: of the mask.
        multiple: what stays comes in multiples of this.
        total: what all its entries cost.
    """

    stops: tuple[Stop, ...]
    entries: int
    multiple: int
    total: float

    def hull(self) -> list[Stop]:
        """The stops on the lower convex hull of loss over saving, those on its edges too: there a saving never gets cheaper."""
        found: list[Stop] = []
        for stop in self.stops:
            if found and stop.cost <= found[-1].cost:
                continue  # loses more and saves nothing
            while len(found) > 1 and _slope(found[-2], found[-1]) > _slope(found[-2], stop):
                found.pop()
            found.append(stop)
        return found

    def least(self, cost: float, after: int, upto: int) -> int:
        """The smallest number of removed entries in ``(after, upto]`` that leaves a multiple and saves at least ``cost``."""
        for low, high in pairwise(self.stops):
            if high.removed <= after or (high.cost < cost and high.removed < upto):
                continue
            share = 1.0 if high.cost <= low.cost else (cost - low.cost) / (high.cost - low.cost)
            exact = low.removed + min(max(share, 0.0), 1.0) * (high.removed - low.removed)
            kept = math.floor((self.entries - exact) / self.multiple + _CLOSE) * self.multiple
            return min(max(self.entries - kept, after + 1), upto)
        return upto


def spend(sensitivity: Sensitivity, groups: Sequence[Group], sparsity: float, budget: Budget) -> dict[str, float]:
    """The fraction that each mask loses, so that together they save ``sparsity`` of what they cost and lose the least quality.

    Losses and savings of different masks are taken to add up. A mask's loss is linear between its points, never falls (the
    running maximum, since a measured gain is noise) and is replaced by its lower convex hull; there the cheapest next saving
    is always the best one, so that no other choice that saves as much as this one has a smaller loss on the hulls. Masks that
    cost the same go on in turns.

    The saving is at least ``sparsity * total``. It is more by less than what the last step saves: one multiple of one mask
    (8 neurons, 1 head, 1 weight).

    Args:
        sensitivity: with points of every one of ``groups`` that has more than one multiple; none loses more than its last one.
        groups: the masks of one entry, one or more.
        sparsity: what to save, a fraction of what all ``groups`` cost.
        budget: what is counted: parameters; multiply-accumulates a token in the projections; milliseconds, where a whole mask
            is taken to cost in proportion to its last point.

    Raises:
        RecipeError: so much cannot be saved with what was measured, or nothing saves anything.
        MismatchError: the sensitivity is of another model, or has no latency.
    """
    points = sensitivity.by_group()
    curves = {group.name: curve_of(group, points.get(group.name, ()), budget) for group in groups}
    total = sum(curve.total for curve in curves.values())
    target = sparsity * total
    reach = sum(curve.stops[-1].cost for curve in curves.values())
    if total <= 0 or reach < target - _CLOSE * total:
        share = reach / total if total > 0 else 0.0
        raise RecipeError(
            f"{groups[0].entry}.sparsity: {sparsity} of the {budget} cannot be saved: what was measured reaches {share:.3f}.\n"
            "Lower sparsity, or measure larger fractions."
        )
    edges = [
        (_slope(low, high), low.removed / curves[name].entries, order, low, high, name)
        for order, name in enumerate(curves)
        for low, high in pairwise(curves[name].hull())
    ]
    removed, saved = dict.fromkeys(curves, 0), 0.0
    for _, _, _, low, high, name in sorted(edges):
        left = target - saved
        if left <= _CLOSE * total:
            break
        whole = high.cost - low.cost <= left
        removed[name] = high.removed if whole else curves[name].least(low.cost + left, low.removed, high.removed)
        saved += min(high.cost - low.cost, left)
    return {name: count / curves[name].entries for name, count in removed.items()}


def tried(sparsity: float) -> tuple[float, float, float]:
    """The fractions of each mask that are measured to spend ``sparsity``: half of it, itself, and half-way to everything."""
    return sparsity / 2, sparsity, (1 + sparsity) / 2


def check_reach(model: Any, configs: Sequence[PruningConfig]) -> None:
    """Refuse, from shapes alone, what ``spend`` would refuse when ``tried`` is measured: widths are rounded, and never to 0.

    Raises:
        RecipeError: so much cannot be saved.
    """
    shared = {f"pruning.{i}": c for i, c in enumerate(configs) if c.allocation == "sensitivity" and c.sparsity}
    groups = whole_groups(model, configs) if shared else ()
    for entry, config in shared.items():
        assert config.sparsity is not None
        own = [group for group in groups if group.entry == entry]
        most = {group.name: max(counts_of(group, tried(config.sparsity)), default=0) for group in own}
        each = {"parameters": parameters_each, "macs": macs_each}.get(config.budget)
        if each is None:  # what a mask takes of the time is not known yet: no share of it is above the largest of one mask
            reach = max(most[group.name] / group.shape.numel() for group in own)
        else:
            every = sum(group.shape.numel() * each(group) for group in own)
            reach = sum(most[group.name] * each(group) for group in own) / every
        if reach < config.sparsity - _CLOSE:
            raise RecipeError(
                f"{entry}.sparsity: {config.sparsity} of the {config.budget} cannot be saved: at most {reach:.3f} can go where "
                f"what stays comes in multiples of {max(group.multiple for group in own)}. Lower sparsity or round_to."
            )


def curve_of(group: Group, points: Sequence[Point], budget: Budget) -> Curve:
    """Savings and losses of one mask; raises as ``spend``."""
    entries = group.shape.numel()
    if any(point.entries != entries for point in points) or (not points and entries > group.multiple):
        came = f"points of {points[0].entries} entries" if points else "no points"
        raise MismatchError(f"sensitivity: {came} for {group.name} of {entries}; measure this very model.")
    each = {"parameters": parameters_each, "macs": macs_each}.get(budget)
    stops = [Stop(0, 0.0, 0.0)]
    for point in points:
        cost = _milliseconds(point) if each is None else float(point.removed * each(group))
        stops.append(Stop(point.removed, max(cost, stops[-1].cost), max(point.loss, stops[-1].loss)))
    last = stops[-1]
    total = float(entries * each(group)) if each else last.cost * entries / last.removed if last.removed else 0.0
    return Curve(tuple(stops), entries, group.multiple, total)


def _milliseconds(point: Point) -> float:
    if point.milliseconds is None:
        raise MismatchError(f"sensitivity: no latency of {point.group}; measure with latency=.")
    return point.milliseconds


def _slope(low: Stop, high: Stop) -> float:
    return (high.loss - low.loss) / (high.cost - low.cost)
