"""Checks between sections. What these prevent: a section that is read, accepted and then has no effect."""

import pytest

from hf_shrink.explain import dotted
from hf_shrink.recipe_checks import recipe_problems

TEACHER = {"model": "m"}
DISTILLATION = {"losses": [{}]}


def found(**data: object) -> list[str]:
    return [dotted(path) for path, _ in recipe_problems(data)]


@pytest.mark.parametrize(
    ("data", "places"),
    [
        ({}, []),
        ({"teacher": TEACHER, "distillation": DISTILLATION}, []),
        ({"model": "m", "teacher": TEACHER, "student": {"start": "teacher"}}, []),
        ({"distillation": DISTILLATION}, ["distillation"]),
        ({"distillation": DISTILLATION, "teacher": None}, ["distillation"]),
        ({"teacher": TEACHER}, ["teacher"]),
        ({"teacher": TEACHER, "student": {"start": "model"}}, ["teacher"]),
        ({"student": {"start": "teacher"}}, ["student.start"]),
        ({"model": "x", "teacher": TEACHER, "student": {"start": "teacher"}}, ["model"]),
        ({"model": "package:a/b", "revision": "main"}, ["revision"]),
        ({"data": {"dataset": "package:a", "subset": "x", "revision": "y"}}, ["data.revision", "data.subset"]),
        ({"data": {"dataset": "a/b", "subset": "x", "revision": "y"}}, []),
        ({"training": {"seed": 1}, "teacher": TEACHER | {"training": {"hub_token": "x"}}, "distillation": DISTILLATION},
         ["training.seed", "teacher.training.hub_token"]),
        ({"task": "text-regression", "training": {"label_smoothing_factor": 0.1}}, ["training.label_smoothing_factor"]),
        ({"task": "multi-label-classification", "teacher": TEACHER | {"training": {"label_smoothing_factor": 0.1}},
          "student": {"start": "teacher"}}, ["teacher.training.label_smoothing_factor"]),
        ({"task": "token-classification", "training": {"label_smoothing_factor": 0.1}}, []),
        ({"task": "text-regression", "training": {"label_smoothing_factor": 0}}, []),
        ({"teacher": TEACHER, "distillation": {"losses": [{"loss": "forward_kl"}, {"loss": "attention_kl"}]},
          "training": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}},
         ["training.gradient_checkpointing_kwargs"]),
        ({"teacher": TEACHER, "distillation": {"losses": [{"loss": "hidden_mse"}]},
          "training": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}}, []),
        ({"teacher": TEACHER, "distillation": {"losses": [{"loss": "attention_kl"}]},
          "training": {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}}}, []),
        ({"pruning": [{"structure": "ffn", "criterion": "mutual_information"}]}, []),
        ({"task": "causal-lm", "pruning": [{"structure": "ffn"}, {"structure": "heads", "criterion": "mutual_information"}]},
         ["pruning.1.criterion"]),
        ({"model": "${HOME}/m", "publishing": {"tags": ["ok", "{{ x }}", "a\x1bb"]}},
         ["model", "publishing.tags.1", "publishing.tags.2"]),
    ],
)  # fmt: skip
def test_sections_that_do_not_fit_are_named(data: dict, places: list[str]):
    assert found(**data) == places


FFN, PLAIN = {"structure": "ffn"}, {"structure": "unstructured"}


@pytest.mark.parametrize(
    ("entries", "claimed"),
    [
        ([FFN, FFN], True),
        ([PLAIN, {}], True),
        ([FFN, PLAIN], True),
        ([FFN, PLAIN | {"target_modules": ["query"]}], False),
        ([PLAIN | {"target_modules": ["key"]}, PLAIN | {"target_modules": ["query"]}], False),
        ([PLAIN | {"target_modules": ["key", "query"]}, PLAIN | {"target_modules": ["query"]}], True),
        ([FFN | {"exclude_modules": ["layer.0"]}, FFN | {"target_modules": ["layer.0"]}], False),
        ([FFN | {"target_modules": ["0"]}, FFN], True),
    ],
)
def test_two_pruning_entries_for_the_same_weights_are_refused(entries: list[dict], claimed: bool):
    """Two schedules on one weight: the mask would follow whichever came last."""
    for order in (entries, entries[::-1]):
        assert found(pruning=order) == (["pruning.1"] if claimed else [])


@pytest.mark.parametrize("junk", [3, "x", [], [1], {"a": []}, None, [[{}]], {"model": [], "training": 3, "start": {}}])
def test_values_of_any_type_are_passed_over(junk: object):
    """The sections' own checks name those; an exception here would hide them."""
    sections = ("model", "data", "teacher", "student", "distillation", "pruning", "training")
    for section in sections:
        found(**{section: junk})
    found(pruning=[{"structure": junk, "target_modules": junk, "exclude_modules": junk}, {"structure": junk}, junk])


def claims(*entries: dict) -> list[str]:
    return [message for path, message in recipe_problems({"pruning": list(entries)}) if path[:1] == ("pruning",)]


@pytest.mark.parametrize(
    "entries",
    [
        ({"sparsity": 0.5}, {"structure": "ffn", "sparsity": 0.5}),
        ({"structure": "n_of_m", "pattern": [2, 4]}, {"structure": "heads", "sparsity": 0.5}),
        ({"structure": "vocabulary", "min_count": 1}, {"structure": "vocabulary", "sparsity": 0.5}),
        ({"structure": "heads", "sparsity": 0.5}, {"structure": "heads", "sparsity": 0.25}),
    ],
)
def test_two_entries_that_are_sure_to_want_the_same_are_found_without_a_model(entries):
    assert len(claims(*entries)) == 1


@pytest.mark.parametrize(
    "entries",
    [
        ({"sparsity": 0.5}, {"structure": "vocabulary", "min_count": 1}),
        ({"structure": "layers", "sparsity": 0.5}, {"sparsity": 0.5}),
        ({"structure": "heads", "sparsity": 0.5, "when": "before"}, {"sparsity": 0.5}),
        ({"structure": "heads", "sparsity": 0.5}, {"structure": "ffn", "sparsity": 0.5}),
    ],
)
def test_entries_that_go_one_after_the_other_are_no_conflict(entries):
    """Zeros in what is left after heads, layers or tokens have gone are a recipe like any other."""
    assert claims(*entries) == []
