"""Criteria: laws for every entry of the table, values worked out by hand, and what a user may pass instead of a name."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.criteria import CRITERIA, Criterion, as_criterion
from hf_shrink.pruning.information import mutual_information
from hf_shrink.pruning.statistics import key_of

OF_WEIGHTS = sorted(name for name, criterion in CRITERIA.items() if criterion.function is not None)
OF_UNITS = sorted(name for name, criterion in CRITERIA.items() if criterion.unit is not None)
DEGREE = {
    "magnitude": 1,
    "magnitude_l2": 2,
    "movement": 1,
    "snip": 1,
    "wanda": 1,
    "taylor": 2,
    "fisher": 2,
    "activation_norm": 0,
    "activation_variance": 0,
    "random": 0,
}
"""By which power scores grow with the weight, gradients and inputs being the same."""
WEIGHT_IS_A_FACTOR = sorted(name for name, degree in DEGREE.items() if degree and name != "movement")


def stats_of(weight: Tensor, seed: int = 0, *, rows: Tensor | None = None, columns: Tensor | None = None) -> dict[str, Tensor]:
    """Statistics of ``weight`` under fixed random gradients and inputs, whose features may be in another order."""
    generator = torch.Generator().manual_seed(seed)
    out_features, in_features = weight.shape
    gradients = torch.randn(5, out_features, in_features, generator=generator)
    inputs = torch.randn(20, in_features, generator=generator) * torch.arange(1, in_features + 1) + 2
    if rows is not None:
        gradients = gradients[:, rows]
    if columns is not None:
        gradients, inputs = gradients[:, :, columns], inputs[:, columns]
    weight = weight.detach().float()
    return {
        "gradient": gradients.mean(0),
        "squared_gradient": gradients.square().mean(0),
        "taylor": (weight * gradients).square().mean(0),
        "movement": -(weight * gradients).sum(0),
        "input_norm": inputs.norm(dim=0),
        "input_mean": inputs.mean(0),
        "input_variance": inputs.var(0, correction=0),
        "key": key_of("layer.0"),
    }


def unit_stats(units: int = 6, samples: int = 60) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (samples,), generator=generator)
    found = {
        name: torch.rand(units, generator=generator) for name in ("unit_norm", "unit_variance", "unit_taylor", "unit_fisher")
    }
    noise = torch.randn(samples, units, generator=generator)
    return found | {"unit_samples": noise + 0.3 * labels.unsqueeze(1) * torch.arange(units), "labels": labels}


def score(name: str, weight: Tensor, stats: dict[str, Tensor]) -> Tensor:
    """With the statistics that the criterion says it needs and no others."""
    function = CRITERIA[name].function
    assert function is not None
    return function(weight, {need: stats[need] for need in CRITERIA[name].needs})


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_every_criterion_gives_finite_floats_of_the_weight_s_shape_and_only_reads(name):
    """A criterion that sums over inputs gives one score a row, and broadcasting would hide it."""
    weight = torch.randn(6, 4, dtype=torch.bfloat16).requires_grad_()
    stats = stats_of(weight)
    before = weight.detach().clone(), {key: value.clone() for key, value in stats.items()}
    scores = score(name, weight, stats)
    assert scores.shape == weight.shape and scores.dtype == torch.float32 and bool(torch.isfinite(scores).all())
    assert not scores.requires_grad
    scores.fill_(-1)
    assert torch.equal(weight, before[0]), "a criterion gives no view of the weight"
    assert all(torch.equal(value, before[1][key]) for key, value in stats.items()), "nor of the statistics"


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_every_criterion_is_deterministic_and_tells_weights_apart(name):
    """Constant scores prune the first weights of a matrix; scores that change from call to call differ between ranks."""
    weight = torch.randn(6, 4)
    first = score(name, weight, stats_of(weight))
    torch.manual_seed(99)
    assert torch.equal(first, score(name, weight, stats_of(weight)))
    assert first.unique().numel() > 1


@pytest.mark.parametrize("name", sorted(set(OF_WEIGHTS) - {"random"}))
def test_every_criterion_follows_a_permutation_of_outputs_and_inputs(name):
    """A statistic of inputs that is spread over outputs scores the wrong weights, and square matrices hide it."""
    weight, rows, columns = torch.randn(6, 6), torch.randperm(6), torch.randperm(6)
    moved = weight[rows][:, columns]
    expected = score(name, weight, stats_of(weight))[rows][:, columns]
    torch.testing.assert_close(score(name, moved, stats_of(moved, rows=rows, columns=columns)), expected)


@pytest.mark.parametrize("name", sorted(DEGREE))
def test_scores_grow_with_the_weight_by_their_power(name):
    """Under global allocation a wrong power makes wide or narrow layers lose everything."""
    weight = torch.randn(6, 4)
    expected = score(name, weight, stats_of(weight)) * 3.0 ** DEGREE[name]
    torch.testing.assert_close(score(name, 3 * weight, stats_of(3 * weight)), expected)


@pytest.mark.parametrize("name", WEIGHT_IS_A_FACTOR)
def test_a_zero_weight_scores_lowest_and_the_sign_of_a_weight_does_not_matter(name):
    """High = keep: with the sign turned round the pruner removes the best weights and still trains."""
    weight = torch.randn(6, 4)
    weight[1, 2] = 0.0
    scores = score(name, weight, stats_of(weight))
    assert scores[1, 2] == scores.min() == 0.0 and int((scores == 0).sum()) == 1
    torch.testing.assert_close(score(name, -weight, stats_of(-weight)), scores)


def test_scores_are_what_comes_out_by_hand():
    """Each formula once, with numbers: a square left out or a half too many changes the ranking of sums, and no other law."""
    weight = torch.tensor([[-3.0, 0.5]])
    stats = {
        "gradient": torch.tensor([[0.5, -2.0]]),
        "squared_gradient": torch.tensor([[1.0, 8.0]]),
        "taylor": torch.tensor([[4.0, 0.25]]),
        "movement": torch.tensor([[-1.5, math.log(3.0)]]),
        "input_norm": torch.tensor([2.0, 10.0]),
        "input_variance": torch.tensor([0.0, 7.0]),
    }
    by_hand = {
        "magnitude": [3.0, 0.5],
        "magnitude_l2": [9.0, 0.25],
        "movement": [-1.5, math.log(3.0)],
        "soft_movement": [1 / (1 + math.exp(1.5)), 0.75],
        "taylor": [4.0, 0.25],
        "snip": [1.5, 1.0],
        "fisher": [4.5, 1.0],
        "wanda": [6.0, 5.0],
        "activation_norm": [2.0, 10.0],
        "activation_variance": [0.0, 7.0],
    }
    for name, values in by_hand.items():
        torch.testing.assert_close(score(name, weight, stats), torch.tensor([values]))


def test_squares_are_combined_as_a_norm_and_nothing_else_is():
    """The L2 norm of a unit is the root of the sum of squares over all its weights, not a sum of norms."""
    assert {name for name, criterion in CRITERIA.items() if criterion.combine == "norm"} == {"magnitude_l2"}


def test_random_depends_on_name_and_seed_alone():
    """Drawn from the global generator, ranks and resumed runs would prune other weights; by shape alone, twins the same."""
    weight, other = torch.randn(8, 8), torch.randn(8, 8)
    scores = {(n, s): score("random", weight, {"key": key_of(n, s)}) for n in ("layer.0", "layer.1") for s in (0, 1)}
    assert torch.equal(scores["layer.0", 0], score("random", other, {"key": key_of("layer.0", 0)}))
    assert len({tuple(value.flatten().tolist()) for value in scores.values()}) == 4
    assert key_of("layer.0").dtype == torch.int64 and int(key_of("layer.0")) >= 0
    assert not CRITERIA["random"].needs_data and CRITERIA["wanda"].needs_data


@pytest.mark.parametrize("name", OF_UNITS)
def test_every_unit_form_gives_finite_floats_that_follow_the_units(name):
    """A score that mixes units up removes neurons by their neighbour's worth."""
    unit = CRITERIA[name].unit
    assert unit is not None
    stats = {need: value for need, value in unit_stats().items() if need in CRITERIA[name].unit_needs}
    assert stats.keys() == set(CRITERIA[name].unit_needs)
    scores, order = unit(stats), torch.randperm(6)
    assert scores.shape == (6,) and scores.dtype == torch.float32 and bool(torch.isfinite(scores).all())
    assert scores.unique().numel() == 6
    moved = {need: value if need == "labels" else value[..., order] for need, value in stats.items()}
    torch.testing.assert_close(unit(moved), scores[order])


def test_only_units_have_mutual_information():
    """A weight has no activation of its own; what refuses it has to be able to see that."""
    assert [name for name, criterion in CRITERIA.items() if criterion.function is None] == ["mutual_information"]


# ---- mutual information ----


def test_a_unit_that_is_the_label_tells_all_of_it_and_noise_tells_nothing():
    """By hand: log 2 for two equal classes, plus (1 + 1 - 1) / 2N; without a correction all noise scores above 0."""
    count = 1000
    labels = torch.arange(count) % 2
    noise = torch.randn(count, 400, generator=torch.Generator().manual_seed(0))
    scores = mutual_information(
        {"unit_samples": torch.cat([labels.unsqueeze(1), -3 * labels.unsqueeze(1), noise], 1), "labels": labels}
    )
    assert scores[:2].tolist() == pytest.approx([math.log(2) + 1 / (2 * count)] * 2, abs=1e-6)
    spread = float(scores[2:].std()) / math.sqrt(400)
    assert abs(float(scores[2:].mean())) < 4 * spread < 1e-3, "the plug-in estimate is 7 / 2N = 0.0035 on average"
    assert float(scores[2:].max()) < 0.03


def by_counting(values: list[float], labels: list[int], bins: int) -> float:
    """The second implementation: dictionaries, and entropies as they are written."""

    def entropy(counts: Counter) -> float:
        total = sum(counts.values())
        return -sum(c / total * math.log(c / total) for c in counts.values()) + (len(counts) - 1) / (2 * total)

    ordered = sorted(values)
    rank = {v: (ordered.index(v) + len(ordered) - ordered[::-1].index(v)) / 2 for v in values}
    codes = [math.floor(rank[v] * bins / len(values)) for v in values]
    both = Counter(zip(codes, labels, strict=True))
    return entropy(Counter(codes)) + entropy(Counter(labels)) - entropy(both)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 1.0, 2.0, 5.0]), st.integers(0, 2)), min_size=4, max_size=70))
def test_mutual_information_equals_counting_even_where_activations_tie(rows):
    """ReLU units are mostly zero: cut at quantiles, half of the zeros fall into another bin than the rest."""
    values, labels = [value for value, _ in rows], [label for _, label in rows]
    classes = len(set(labels))
    if classes < 2:
        with pytest.raises(RecipeError, match=f"{len(rows)} samples of one class tell nothing"):
            mutual_information({"unit_samples": torch.tensor([values]).T, "labels": torch.tensor(labels)})
        return
    bins = min(max(len(rows) // (5 * classes), 2), 8)
    found = mutual_information({"unit_samples": torch.tensor([values]).T, "labels": torch.tensor(labels)})
    assert found.tolist() == pytest.approx([by_counting(values, labels, bins)], abs=1e-5)


def test_mutual_information_does_not_see_scale_nor_the_names_of_classes():
    stats = unit_stats()
    stretched = {"unit_samples": stats["unit_samples"].exp() * 7, "labels": torch.tensor([40, 3, 11])[stats["labels"]]}
    torch.testing.assert_close(mutual_information(stretched), mutual_information(stats))


# ---- what a user may pass ----


def test_a_name_a_criterion_and_a_function_are_all_criteria():
    assert as_criterion("wanda") is CRITERIA["wanda"] is as_criterion(CRITERIA["wanda"])
    own = as_criterion(lambda weight, stats: -weight)
    assert own.function is not None and own.needs == () and own == as_criterion(own)
    assert torch.equal(own.function(torch.ones(2, 3), {}), -torch.ones(2, 3))
    more = as_criterion(Criterion(lambda weight, stats: weight.double() * stats["input_norm"], ("input_norm",), combine="norm"))
    assert more.needs == ("input_norm",) and more.combine == "norm" and more.function is not None
    weight = torch.ones(2, 3, requires_grad=True)
    scores = more.function(weight, {"input_norm": torch.arange(3.0)})
    assert scores.dtype == torch.float32 and not scores.requires_grad and scores[1].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("wandaa", r"criterion: unknown name 'wandaa'. Did you mean 'wanda'\?"),
        (Criterion(lambda w, s: w, ("input_norms",)), r"unknown statistic 'input_norms'. Did you mean 'input_norm'\?"),
        (Criterion(None), "neither function nor unit"),
        (3, r"criterion: got 3; pass a name, a Criterion or a function"),
    ],
)
def test_what_cannot_score_is_refused(value, says):
    with pytest.raises(RecipeError, match=says):
        as_criterion(value)


@pytest.mark.parametrize("function", [lambda w, s: w.abs().sum(1), lambda w, s: w.abs().sum(0), lambda w, s: 1.0])
def test_a_user_s_function_that_gives_another_shape_is_refused(function):
    """One score a row would be spread over the weight in silence."""
    own = as_criterion(function)
    assert own.function is not None
    with pytest.raises(RecipeError, match=r"criterion <lambda>: scores .* for a weight \[4, 4\]; return one score a weight"):
        own.function(torch.ones(4, 4), {})
