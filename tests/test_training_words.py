"""The words of ``training``. What these prevent: a word that TrainingArguments has not, found after the teacher is trained."""

import dataclasses
import math

import pytest
from transformers import TrainingArguments

from hf_shrink.training_words import training_problems, training_words


def test_the_words_are_the_fields_of_the_class():
    """They are read from the source text: a release that builds its fields another way must not go unseen."""
    assert list(training_words()) == [field.name for field in dataclasses.fields(TrainingArguments)]


def test_every_default_of_the_class_fits_its_own_word():
    """The check of types must not refuse what is right; what has no plain default is passed over."""
    checked = 0
    for field in dataclasses.fields(TrainingArguments):
        plain = field.default is None or type(field.default) in {int, float, str, bool}
        if plain:
            checked += 1
            assert [m for _, m in training_problems({field.name: field.default}) if m.startswith("expected")] == []
    assert checked > 90


@pytest.mark.parametrize(
    "words",
    [
        {"learning_rate": 1e-4, "num_train_epochs": 3, "max_steps": 10, "warmup_steps": 0.1},
        {"bf16": True, "lr_scheduler_type": "cosine", "report_to": ["tensorboard"], "label_smoothing_factor": 0.1},
        {"lr_scheduler_kwargs": {"a": 1}, "optim": "adamw_torch", "save_total_limit": None, "eval_strategy": "no"},
    ],
)
def test_usual_sections_are_taken(words: dict):
    assert list(training_problems(words)) == []


@pytest.mark.parametrize(
    ("word", "value", "message"),
    [
        ("learning_rat", 1, "Did you mean 'learning_rate'?"),
        ("learning_rate", "1e-4", "expected float, got string '1e-4'"),
        ("learning_rate", True, "expected float, got boolean True"),
        ("learning_rate", math.nan, "must be finite"),
        ("max_steps", 10.0, "expected int, got float 10.0"),
        ("bf16", "no", "expected bool, got string 'no'"),
        ("per_device_train_batch_size", None, "expected int, got null"),
        ("lr_scheduler_type", 3, "got int 3"),
        ("report_to", {"a": 1}, "got mapping"),
        ("report_to", "all", "name the trackers"),
        ("report_to", ["tensorboard", "codecarbon"], "measurement.energy"),
        ("output_dir", "x", "not set here"),
        ("seed", 1, "not set here"),
        ("push_to_hub", False, "not set here"),
        ("hub_token", "t", "not set here"),
        ("hub_strategy", "end", "not set here"),
        ("do_train", True, "not set here"),
        ("resume_from_checkpoint", "x", "not set here"),
        ("overwrite_output_dir", True, "not set here"),
        ("remove_unused_columns", False, "not set here"),
        ("deepspeed", "x.json", "not set here"),
        ("__class__", 1, "unknown key"),
    ],
)
def test_what_cannot_be_meant_is_named(word: str, value: object, message: str):
    [(found, told)] = training_problems({word: value})
    assert found == word
    assert message in told
