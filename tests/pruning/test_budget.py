"""No other way to spend as much loses less, and what is asked for is spent."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.pruning.budget import check_reach, curve_of, spend, tried
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.pieces import Group, Piece
from hf_shrink.pruning.pruner import Pruner
from hf_shrink.pruning.sensitivity import sensitivity, whole_groups
from hf_shrink.pruning.sensitivity_table import Point, Sensitivity
from tests import tiny


def group(name, entries, width, multiple=1):
    """Units of ``width`` parameters each, in one projection without bias."""
    with torch.device("meta"):
        layer = nn.Linear(width, entries, bias=False)
    piece = Piece(f"{name}.weight", layer, "weight", "output")
    config = PruningConfig(structure="ffn", sparsity=0.5)
    return Group(name, "pruning.0", config, torch.Size([entries]), 0.5, (piece,), multiple)


def measured(groups, losses, milliseconds=None):
    """``losses[i]``: for group ``i``, from a number of removed entries to its loss."""
    points = []
    for i, (own, curve) in enumerate(zip(groups, losses, strict=True)):
        n = own.shape.numel()
        for removed, loss in curve.items():
            saved = None if milliseconds is None else milliseconds[i][removed]
            points.append(Point(own.name, "ffn", "*", i, removed / n, removed, n, 1 - loss, loss, 0, 0, saved))
    return Sensitivity(tuple(points), 1.0)


def removed_of(fractions, groups):
    counts = {g.name: fractions[g.name] * g.shape.numel() for g in groups}
    assert all(math.isclose(count, round(count), abs_tol=1e-9) for count in counts.values())
    return [round(counts[g.name]) for g in groups]


def allowed(own, most):
    """Every number of removed entries after which a multiple stays."""
    n = own.shape.numel()
    return [c for c in range(most + 1) if c == 0 or (n - c) % own.multiple == 0]


def hull_at(stops, cost):
    """The lower convex hull at ``cost``, a second way: the least of all chords that span it."""
    found = [loss for c, loss in stops if c == cost]
    for (c0, l0), (c1, l1) in itertools.combinations(stops, 2):
        if c0 < cost < c1:
            found.append(l0 + (l1 - l0) * (cost - c0) / (c1 - c0))
    return min(found)


def monotone(curve, unit):
    """Stops as (cost, loss), the loss never falling."""
    stops, high = [(0.0, 0.0)], 0.0
    for removed, loss in sorted(curve.items()):
        high = max(high, loss)
        stops.append((removed * unit, high))
    return stops


@st.composite
def cases(draw):
    groups, losses = [], []
    for i in range(draw(st.integers(1, 3))):
        multiple = draw(st.sampled_from([1, 2, 3]))
        entries = draw(st.integers(multiple + 1, 9))
        own = group(f"g{i}", entries, draw(st.integers(1, 5)), multiple)
        counts = [c for c in range(1, entries) if (entries - c) % multiple == 0]
        chosen = draw(st.lists(st.sampled_from(counts), min_size=1, max_size=3, unique=True))
        losses.append({c: draw(st.integers(-3, 12)) / 4 for c in sorted(chosen)})
        groups.append(own)
    return groups, losses, draw(st.floats(0, 1))


@settings(max_examples=400, deadline=None)
@given(cases())
def test_nothing_that_saves_as_much_loses_less_and_no_step_is_too_many(case):
    """A greedy choice over curves that are not convex, or one that stops short, would look just as plausible."""
    groups, losses, share = case
    most = [max(curve) for curve in losses]
    units = [g.pieces[0].parameter.numel() // g.shape.numel() for g in groups]
    total = sum(unit * g.shape.numel() for unit, g in zip(units, groups, strict=True))
    sparsity = share * sum(unit * top for unit, top in zip(units, most, strict=True)) / total
    chosen = removed_of(spend(measured(groups, losses), groups, sparsity, "parameters"), groups)

    stops = [monotone(curve, unit) for curve, unit in zip(losses, units, strict=True)]

    def cost(counts):
        return sum(unit * count for unit, count in zip(units, counts, strict=True))

    def loss(counts):
        return sum(hull_at(own, unit * count) for own, unit, count in zip(stops, units, counts, strict=True))

    choices = [allowed(g, top) for g, top in zip(groups, most, strict=True)]
    assert all(count in choice for count, choice in zip(chosen, choices, strict=True))
    spent, target = cost(chosen), sparsity * total
    assert spent >= target - 1e-6
    assert loss(chosen) <= min(loss(other) for other in itertools.product(*choices) if cost(other) >= spent) + 1e-9
    fewer = [
        [choice[choice.index(count) - 1] if j == i else count for j, count in enumerate(chosen)]
        for i, choice in enumerate(choices)
        if chosen[i]
    ]
    assert not any(chosen) or any(cost(other) < target + 1e-6 for other in fewer)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 8), min_size=3, max_size=4), min_size=1, max_size=3),
    st.floats(0, 1),
)
def test_where_every_step_costs_the_same_the_choice_is_the_very_best(rises, share):
    """Against every possible choice, convex curves measured at each step: no rounding left to hide behind."""
    groups = [group(f"g{i}", len(own) + 1, 4) for i, own in enumerate(rises)]
    losses = [{i + 1: float(sum(sorted(own)[: i + 1])) for i in range(len(own))} for own in rises]
    entries, most = sum(len(own) + 1 for own in rises), sum(map(len, rises))
    need = round(share * most)
    chosen = removed_of(spend(measured(groups, losses), groups, need / entries, "macs"), groups)
    assert sum(chosen) == need

    def loss(counts):
        return sum(({0: 0.0} | own)[c] for own, c in zip(losses, counts, strict=True))

    others = (o for o in itertools.product(*(range(len(own) + 1) for own in rises)) if sum(o) >= need)
    assert loss(chosen) == pytest.approx(min(map(loss, others)))


def test_the_cheap_layer_pays_and_equal_ones_take_turns():
    """By hand: 8 units each of 3 parameters; half is 12 units. The third layer is dear, the first two cost nothing."""
    groups = [group(f"g{i}", 8, 3, multiple=2) for i in range(3)]
    losses = [{2: 0.0, 4: 0.0, 6: 0.0}, {2: -0.5, 4: 0.0, 6: 0.0}, {2: 1.0, 4: 2.0, 6: 3.0}]
    found = measured(groups, losses)
    assert removed_of(spend(found, groups, 8 / 24, "parameters"), groups) == [4, 4, 0]
    assert removed_of(spend(found, groups, 0.5, "parameters"), groups) == [6, 6, 0]
    assert removed_of(spend(found, groups, 13 / 24, "parameters"), groups) == [6, 6, 2]
    assert removed_of(spend(found, groups, 0.0, "parameters"), groups) == [0, 0, 0]


def test_a_bargain_behind_a_step_is_found():
    """The first units are dear and the rest free: without the hull a greedy choice never gets past the first."""
    groups = [group("step", 9, 1), group("slope", 9, 1)]
    found = measured(groups, [{2: 1.0, 8: 1.0}, {2: 0.5, 8: 2.0}])
    assert removed_of(spend(found, groups, 8 / 18, "parameters"), groups) == [8, 0]


def test_latency_is_spent_along_the_measured_times():
    """By hand: a mask's first 4 units save 1 ms, the next 4 save 3 ms; half of a whole mask's 4 * 10 / 8 ms is 2.5 ms."""
    own = group("g", 10, 7)
    found = measured([own], [{4: 0.1, 8: 0.2}], milliseconds=[{4: 1.0, 8: 4.0}])
    assert curve_of(own, found.points, "latency").total == 5.0
    assert removed_of(spend(found, [own], 0.5, "latency"), [own]) == [6]
    slower = measured([own], [{4: 0.1, 8: 0.2}], milliseconds=[{4: -1.0, 8: -0.5}])
    with pytest.raises(
        RecipeError, match=r"pruning\.0\.sparsity: 0\.5 of the latency cannot be saved: what was measured reaches 0\.000"
    ):
        spend(slower, [own], 0.5, "latency")


def test_what_was_not_measured_is_refused():
    """Extrapolating beyond the last point, or over another model's layers, would be a guess without a warning."""
    own = group("g", 8, 3)
    found = measured([own], [{2: 0.1, 4: 0.5}])
    with pytest.raises(RecipeError, match=r"0\.6 of the parameters cannot be saved: what was measured reaches 0\.500"):
        spend(found, [own], 0.6, "parameters")
    with pytest.raises(MismatchError, match="no points for other of 8"):
        spend(found, [own, group("other", 8, 3)], 0.1, "parameters")
    with pytest.raises(MismatchError, match="points of 8 entries for g of 9"):
        spend(found, [group("g", 9, 3)], 0.1, "parameters")
    with pytest.raises(MismatchError, match="no latency of g"):
        spend(found, [own], 0.1, "latency")


@pytest.mark.parametrize("name", tiny.ALL_FAMILIES)
@pytest.mark.parametrize("structure", ["ffn", "heads", "unstructured"])
def test_pruning_takes_exactly_what_was_spent(name, structure):
    """A fraction that rounds to another width on its way to the masks breaks the promise of the budget."""
    model = tiny.tiny_classifier(name)
    config = PruningConfig(structure=structure, sparsity=0.25, allocation="sensitivity")
    groups = whole_groups(model, [config])

    def score(_model):
        return -sum(int((piece.parameter == 0).sum()) for piece in groups[0].weights)

    fractions = spend(sensitivity(model, config, score), groups, 0.25, "parameters")
    assert fractions[groups[0].name] == 0 < max(fractions.values()), "an even budget would prove nothing here"
    pruner = Pruner(model, [config], total_steps=1, fractions=fractions)
    pruner.update(1)
    masks = pruner.masks()
    for own in groups:
        assert int((~masks[own.name]).sum()) == round(fractions[own.name] * own.shape.numel())
    gone = sum((~masks[g.name]).sum() * sum(p.parameter.numel() for p in g.pieces) / g.shape.numel() for g in groups)
    assert gone >= 0.25 * sum(p.parameter.numel() for g in groups for p in g.pieces)


@pytest.mark.parametrize("budget", ["parameters", "macs"])
@pytest.mark.parametrize("structure", ["ffn", "heads", "unstructured"])
def test_what_cannot_be_spent_is_known_from_shapes_as_it_is_after_measuring(structure, budget):
    """A teacher was trained for an hour before the widths were found too coarse for what was asked for."""
    model, refused = tiny.tiny_classifier("bert"), []
    for sparsity in (0.5, 0.75, 0.87, 0.88, 0.9, 0.99):
        config = PruningConfig(structure=structure, sparsity=sparsity, allocation="sensitivity", budget=budget)
        found = sensitivity(model, config, lambda model: 0.0, fractions=tried(sparsity))
        said = []
        for check in (
            lambda config=config: check_reach(model, [config]),
            lambda found=found, config=config: spend(found, whole_groups(model, [config]), config.sparsity, budget),
        ):
            try:
                check()
                said.append(False)
            except RecipeError:
                said.append(True)
        assert said[0] == said[1], sparsity
        refused.append(said[0])
    assert refused == {"ffn": [0, 0, 0, 1, 1, 1], "heads": [0, 0, 1, 1, 1, 1], "unstructured": [0] * 6}[structure]
