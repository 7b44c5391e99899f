"""Disturbed texts. What these prevent: one that depends on the order of rows, or on texts that did not change."""

import re

import numpy as np
import pytest
from datasets import Dataset

from hf_shrink import Recipe
from hf_shrink.errors import RecipeError
from hf_shrink.measurement.config import MeasurementConfig, RobustnessConfig
from hf_shrink.measurement.measure import measure_all
from hf_shrink.measurement.measures import rows
from hf_shrink.measurement.perturbations import KINDS, disturbed, neighbours, some_rows
from hf_shrink.measurement.robustness import robustness
from hf_shrink.measurement.subjects import Bench, Subject
from tests.tiny import colour_texts, tiny_classifier, tiny_tokenizer

TEXT = "The quick brown fox jumps over the lazy dog and then it rests"
TEXTS = [f"number {i} of some rows with a few words" for i in range(40)]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_is_drawn_from_the_text_and_the_seed_and_changes_something(kind):
    """A disturbance that leaves the text alone would show a perfectly robust model."""
    first = disturbed(TEXT, kind, 0.3, 0)
    assert first == disturbed(TEXT, kind, 0.3, 0) != TEXT
    assert len({disturbed(TEXT, kind, 0.3, seed) for seed in range(10)}) > 3
    for odd in ("", "   ", "1.", "…", "a", "\ud800 x"):
        assert isinstance(disturbed(odd, kind, 1.0, 0), str)
    assert "  " in disturbed("two  words here that stay apart", kind, 0.01, 0) or kind == "dropped_words"


@pytest.mark.parametrize(("rate", "changed"), [(0.3, 4), (0.01, 1), (1.0, 13)])
@pytest.mark.parametrize("kind", ["typos", "casing"])
def test_exactly_the_rate_of_the_words_is_changed(kind, rate, changed):
    """13 words: 0.3 of them are 4, and never fewer than one."""
    pairs = zip(TEXT.split(), disturbed(TEXT, kind, rate, 1).split(), strict=True)
    assert sum(before != after for before, after in pairs) == changed


def test_a_typo_is_one_slip_of_a_finger():
    """Random letters would be no typos: each word is one edit away, and what is new in it lies beside what was there."""
    for seed in range(60):
        for before, after in zip(TEXT.split(), disturbed(TEXT, "typos", 1.0, seed).split(), strict=True):
            assert abs(len(after) - len(before)) <= 1 and after != before
            new = next((b for a, b in zip(before, after, strict=False) if a != b), after[-1])
            near = {key for letter in before for key in neighbours(letter)} | set(before.lower())
            assert new.lower() in near, (before, after)
    assert set(neighbours("S")) == set("adwx") and set(neighbours("q")) == set("w1a") and neighbours("é") == ""


def test_words_go_or_change_places_and_nothing_else_happens():
    words = TEXT.split()
    fewer = disturbed(TEXT, "dropped_words", 0.2, 0).split()
    assert len(fewer) == 10 and re.fullmatch(r"\b.*".join(map(re.escape, fewer)) + ".*", TEXT[TEXT.index(fewer[0]) :])
    assert disturbed("alone", "dropped_words", 1.0, 0) == "alone" == disturbed("alone", "swapped_words", 1.0, 0)
    swapped = disturbed(TEXT, "swapped_words", 0.3, 0).split()
    apart = [i for i, (a, b) in enumerate(zip(words, swapped, strict=True)) if a != b]
    assert sorted(swapped) == sorted(words) and len(apart) == 4
    assert all((words[i], words[j]) == (swapped[j], swapped[i]) for i, j in zip(apart[::2], apart[1::2], strict=True))
    assert disturbed("AbC d1", "casing", 1.0, 0) == "aBc D1"


def test_the_rows_are_the_same_whatever_order_they_come_in():
    """Another order of the same test set would be another test."""
    shuffled = [TEXTS[i] for i in np.random.default_rng(0).permutation(40)]
    first, second = ({of[i] for i in some_rows(of, 10, 0)} for of in (TEXTS, shuffled))
    assert first == second and len(first) == 10 and some_rows(TEXTS, 99, 0) == list(range(40))
    assert {TEXTS[i] for i in some_rows(TEXTS, 10, 1)} != first


def bench_of(model, config: RobustnessConfig) -> Bench:
    """Two models and a floor, and the texts as a recipe would give them."""
    data = colour_texts(40)

    def rewritten(kind, tokenizer):
        texts = (
            list(data["text"]) if kind is None else [disturbed(t, kind, config.rates[kind], config.seed) for t in data["text"]]
        )
        return Dataset.from_dict({**tokenizer(texts), "labels": data["label"]})

    settings = MeasurementConfig(robustness=config, bootstrap=200)
    subjects = (Subject("teacher", model=model), Subject("student", model=tiny_classifier(seed=1)), Subject("floor"))
    return Bench(subjects, settings, tokenizer=tiny_tokenizer(), rewritten=rewritten)


def test_the_mean_and_the_loss_are_those_of_the_kinds_and_of_the_same_rows():
    """Set against the whole test set the loss would be one of other rows."""
    teacher, student, floor = robustness(bench_of(tiny_classifier(), RobustnessConfig(casing=0)))
    found = {m.name: m.value for m in student}
    kinds = [found[f"robustness_{kind}"] for kind in ("typos", "dropped_words", "swapped_words")]
    assert floor == [] and "robustness_casing" not in found
    assert found["robustness"] == pytest.approx(np.mean(kinds))
    assert found["robustness_loss"] == pytest.approx(found["robustness_clean"] - np.mean(kinds))
    base = {m.name: m.value for m in teacher}
    assert "robustness_difference" not in base
    assert found["robustness_difference"] == pytest.approx(found["robustness"] - base["robustness"])
    assert found["robustness_recovery"] == pytest.approx(100 * found["robustness"] / base["robustness"])
    assert all(m.interval is not None and m.interval[0] <= m.value <= m.interval[1] for m in student)
    assert {m.name for m in student} <= rows().keys() and all("40 examples" in m.setting for m in student)


def test_a_model_that_does_not_read_its_texts_loses_nothing():
    """The law: one answer for everything is robust, and the interval of its loss has no width."""
    import torch

    model = tiny_classifier()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    found = {m.name: m for m in robustness(bench_of(model, RobustnessConfig()))[0]}
    assert found["robustness_loss"].value == 0 and found["robustness_loss"].interval == (0, 0)
    assert found["robustness"].value == found["robustness_clean"].value > 0


def test_it_is_refused_where_it_would_not_be_measured():
    """Asked for and left out in silence, a missing row reads as nothing to report."""
    asked = MeasurementConfig(robustness=True, memory=False, batch_sizes=(1,), length=8, runs=3)
    with pytest.raises(RecipeError, match="no texts to disturb"):
        measure_all([Subject("a", model=tiny_classifier())], config=asked)
    with pytest.raises(RecipeError, match="every rate is 0"):
        RobustnessConfig(typos=0, casing=0, dropped_words=0, swapped_words=0)
    text = "version: 1\ntask: {}\nmodel: m\noutput_dir: o\ndata: {{dataset: d}}\nmeasurement: {{robustness: {}}}\n"
    assert Recipe.from_text(text.format("text-classification", "{rows: 50}")).measurement.robust.rows == 50
    assert Recipe.from_text(text.format("causal-lm", "false")).measurement.robust is None
    for task in ("causal-lm", "token-classification", "text-regression"):
        with pytest.raises(RecipeError, match=rf"measurement\.robustness: .* not of {task}"):
            Recipe.from_text(text.format(task, "true"))
    with pytest.raises(RecipeError, match=r"unknown key 'typoes'\. Did you mean 'typos'"):
        Recipe.from_text(text.format("text-classification", "{typoes: 0.1}"))
