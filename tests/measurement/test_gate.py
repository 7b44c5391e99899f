"""The gate: bounds worked out by hand, in both directions, and what cannot be meant."""

import pytest

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.measurement.config import GateConfig
from hf_shrink.measurement.gate import gate_words, judge_gate, score_for
from hf_shrink.measurement.values import Measurement, Report

SAMPLES = "100 examples, labels aaaa, 100 resamples"


def report(name: str, value: float, metric: str = "accuracy", unit: str = "%", **changes: tuple[float, float]) -> Report:
    """``changes``: intervals of ``recovery``, ``difference``, ``ratio`` and of the score itself (``own``)."""
    own = Measurement(name=metric, value=value, unit=unit, setting=SAMPLES, interval=changes.pop("own", None))
    more = [
        Measurement(name=f"{metric}_{kind}", value=sum(ends) / 2, unit="%", setting=SAMPLES, interval=ends)
        for kind, ends in changes.items()
    ]
    return Report(name=name, measurements=(own, *more))


def verdict(config: GateConfig, *reports: Report, task: str = "text-classification"):
    return judge_gate(config, score_for(config, task, ("a", "b")), reports, baseline=0)


@pytest.mark.parametrize(
    ("words", "base", "bound"),
    [
        ({"keep": 0.98}, 80.0, 78.4),
        ({"keep": 1.0}, 80.0, 80.0),
        ({"max_drop": 1.5}, 80.0, 78.5),
        ({"max_drop": 0.0}, 80.0, 80.0),
    ],
)
def test_the_bound_of_a_score_of_which_more_is_better(words, base, bound):
    found = verdict(GateConfig(**words), report("teacher", base), report("a", bound), report("b", bound - 0.01))
    assert found.bound == pytest.approx(bound) and [s.held for s in found.stages] == [True, False]


@pytest.mark.parametrize(
    ("words", "bound"), [({"keep": 0.8}, 25.0), ({"keep": 1.0}, 20.0), ({"max_drop": 1.5}, 21.5), ({"max_drop": 0.0}, 20.0)]
)
def test_the_bound_of_a_perplexity_lies_above_the_baseline(words, bound):
    """A gate read the other way round passes exactly the models that it should stop."""
    made = [report(n, v, "perplexity", "ppl") for n, v in (("teacher", 20.0), ("a", bound), ("b", bound + 0.01), ("c", 10.0))]
    found = verdict(GateConfig(**words), *made, task="causal-lm")
    assert found.bound == pytest.approx(bound) and [s.held for s in found.stages] == [True, False, True]


@pytest.mark.parametrize(
    ("words", "interval", "unsure"),
    [
        ({"keep": 0.98}, {"recovery": (97.0, 99.0)}, True),
        ({"keep": 0.98}, {"recovery": (98.1, 99.0)}, False),
        ({"keep": 0.98}, {"recovery": (98.1, 99.0), "own": (70.0, 90.0)}, False),
        ({"keep": 0.98}, {"own": (78.0, 81.0)}, True),
        ({"keep": 0.98}, {"own": (79.0, 81.0)}, False),
        ({"max_drop": 1.0}, {"difference": (-1.5, 0.5)}, True),
        ({"max_drop": 1.0}, {"difference": (-0.9, 0.5)}, False),
        ({"keep": 0.98}, {}, False),
    ],
)
def test_an_interval_over_the_bound_is_said(words, interval, unsure):
    """Passed by luck on 100 examples, a model is passed off as good; the paired interval is the one to look at."""
    (stage,) = verdict(GateConfig(**words), report("teacher", 80.0), report("a", 79.5, **interval)).stages
    assert stage.held and stage.unsure is unsure and ("may be chance" in stage.why) is unsure


def test_the_ratio_s_interval_is_held_against_the_inverse_of_keep():
    """1 / 0.8 = 1.25."""
    for ends, unsure in (((1.2, 1.3), True), ((1.1, 1.2), False)):
        made = report("teacher", 20.0, "perplexity", "ppl"), report("a", 24.0, "perplexity", "ppl", ratio=ends)
        assert verdict(GateConfig(keep=0.8), *made, task="causal-lm").stages[0].unsure is unsure


def test_rounding_does_not_decide():
    """0.98 x 75 is 73.49999999999999 or 73.5, by how it is worked out."""
    assert verdict(GateConfig(keep=0.98), report("teacher", 75.0), report("a", 0.98 * 75 - 1e-12)).stages[0].held


def test_no_fraction_of_a_baseline_below_zero_is_kept():
    """98 % of -0.1 is a bound that is better than the baseline."""
    made = [report(n, v, "pearson") for n, v in (("teacher", -10.0), ("a", 50.0))]
    found = verdict(GateConfig(keep=0.9), *made, task="text-regression")
    assert not found.stages[0].held and "max_drop" in found.stages[0].why and found.bound is None
    assert verdict(GateConfig(max_drop=1.0), *made, task="text-regression").stages[0].held


def test_other_samples_are_not_compared():
    other = report("a", 79.0).model_copy(update={"measurements": (Measurement(name="accuracy", value=79.0, unit="%"),)})
    with pytest.raises(MismatchError, match="baseline's samples"):
        verdict(GateConfig(keep=0.9), report("teacher", 80.0), other)


@pytest.mark.parametrize(
    ("task", "names", "main"),
    [
        ("text-classification", ("a", "b"), "accuracy"),
        ("token-classification", ("O", "B-PER"), "entity_f1"),
        ("token-classification", ("NOUN", "VERB"), "tag_accuracy"),
        ("multi-label-classification", ("a", "b"), "micro_f1"),
        ("text-regression", (), "pearson"),
        ("causal-lm", (), "perplexity"),
    ],
)
def test_the_main_metric_of_a_task(task, names, main):
    assert score_for(GateConfig(keep=0.9), task, names).name == main


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"metric": "acuracy", "keep": 0.9}, "Did you mean 'accuracy'"),
        ({"metric": "perplexity", "keep": 0.9}, "does not measure 'perplexity'"),
        ({"max_drop": 100.0}, "can never be lost"),
    ],
)
def test_what_is_not_measured_is_refused_by_the_plan(words, says):
    """Found after the training, it costs the training."""
    with pytest.raises(RecipeError, match=says):
        gate_words(GateConfig(**words), "text-classification", ("a", "b"), ["teacher", "student"], False)


def test_a_gate_over_nothing_is_refused():
    with pytest.raises(RecipeError, match="no stage comes after the student"):
        gate_words(GateConfig(keep=0.9), "text-classification", ("a",), ["floor", "student"], False)
    with pytest.raises(RecipeError, match="vocabulary"):
        gate_words(GateConfig(keep=0.9), "causal-lm", (), ["teacher", "student", "shrunk"], True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({}, "neither is given"),
        ({"keep": 0.9, "max_drop": 1.0}, "both is given"),
        ({"keep": 98.0}, r"\(0, 1\]"),
        ({"keep": 0.0}, r"\(0, 1\]"),
        ({"keep": float("nan")}, "keep"),
        ({"max_drop": -1.0}, "at least 0"),
        ({"keep": 0.9, "on_miss": "ignore"}, "on_miss"),
    ],
)
def test_nonsense_is_refused(words, says):
    with pytest.raises(RecipeError, match=says):
        GateConfig(**words)
