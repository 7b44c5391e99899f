"""Optimizers and schedules in ``training``. What these prevent: a setting that is read, accepted and then not used."""

import pytest

from hf_shrink.optimizer_words import optimizer_problems
from hf_shrink.recipe_checks import recipe_problems


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true", "weight_decay": 0.1},
        {"optim": "adamw_torch", "adam_beta1": 0.8, "lr_scheduler_type": "linear", "warmup_steps": 0.1},
        {"optim": "rmsprop", "optim_args": "alpha=0.9,momentum=0.9,eps=1e-8,centered=true"},
        {"optim": "ademamix", "optim_args": "beta3=0.999", "adam_beta1": 0.8},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 10},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch", "lr_scheduler_kwargs": {"patience": 1}},
        {"optim": 3, "lr_scheduler_type": [], "optim_args": {}},
    ],
)
def test_what_is_used_is_taken(words):
    assert list(optimizer_problems(words)) == []


@pytest.mark.parametrize(
    ("words", "place", "says"),
    [
        ({"optim": "sgd", "optim_args": "momentun=0.9"}, "optim_args", "sgd takes dampening, momentum, nesterov"),
        ({"optim": "sgd", "optim_args": "momentum"}, "optim_args", "name=value"),
        ({"optim": "sgd", "optim_args": "weight_decay=0.1"}, "optim_args", "use the word weight_decay"),
        ({"optim_args": "momentum=0.9"}, "optim_args", "adamw_torch takes none"),
        ({"optim": "adafactor", "adam_beta2": 0.9}, "adam_beta2", "adafactor does not read it"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 10}, "warmup_steps", "constant_with_warmup"),
        ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"a": 1}}, "lr_scheduler_kwargs", "takes none"),
        ({"lr_scheduler_type": "multistep"}, "lr_scheduler_type", "optimization: {schedule:"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "lr_scheduler_type", "eval_strategy"),
    ],
)
def test_what_would_be_ignored_is_named(words, place, says):
    [(word, message)] = optimizer_problems(words)
    assert word == place and says in message
    assert [path for path, _ in recipe_problems({"training": words})] == [("training", place)]
    assert ("teacher", "training", place) in [path for path, _ in recipe_problems({"teacher": {"training": words}})]


def test_two_schedules_or_two_orders_are_refused():
    data = {
        "optimization": {"schedule": {"every": 2}, "unfreeze_every": 3},
        "training": {"lr_scheduler_type": "cosine"},
        "distillation": {"progressive": {"steps_per_layer": 3}},
    }
    found = [path for path, _ in recipe_problems(data)]
    assert ("training", "lr_scheduler_type") in found and ("optimization", "unfreeze_every") in found
