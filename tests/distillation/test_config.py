"""A distillation section that cannot be meant is refused where it is written."""

import pytest

from hf_shrink.distillation.config import DistillationConfig, LossTerm
from hf_shrink.errors import RecipeError


@pytest.mark.parametrize("value", [0, 0.0, -1.0, float("nan"), float("inf"), "2", True])
def test_a_temperature_is_a_number_above_zero(value):
    """At 0 the loss is NaN from the first step."""
    with pytest.raises(RecipeError, match=r"LossTerm\.temperature") as error:
        LossTerm(temperature=value)
    assert error.value.code == 2


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), "0.5"])
def test_alpha_is_between_zero_and_one(value):
    """Above 1 the task loss counts against the student."""
    with pytest.raises(RecipeError, match=r"DistillationConfig\.alpha"):
        DistillationConfig(alpha=value, losses=(LossTerm(),))


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_weight_is_not_negative(value):
    """A negative weight pushes the student away from its teacher."""
    with pytest.raises(RecipeError, match=r"LossTerm\.weight"):
        LossTerm(weight=value)


def test_an_unknown_loss_is_refused_with_the_nearest_name():
    """A misspelt name must not fall back to something."""
    with pytest.raises(RecipeError, match="Did you mean 'forward_kl'"):
        LossTerm(loss="foward_kl")


def test_no_terms_are_refused():
    """An empty sum is a distillation that is zero."""
    with pytest.raises(RecipeError, match="losses"):
        DistillationConfig(losses=())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"loss": "hidden_mse", "temperature": 2.0}, "temperature: would be ignored"),
        ({"loss": "logit_mse", "temperature_end": 2.0}, "temperature: would be ignored"),
        ({"loss": "forward_kl", "beta": 0.5}, "beta: would be ignored"),
        ({"loss": "forward_kl", "layers": "last"}, "layers: would be ignored"),
        ({"loss": "embedding_mse", "layers": "last"}, "layers: would be ignored"),
        ({"loss": "jsd", "beta": 1.0}, r"in \(0, 1\)"),
        ({"loss": "jsd", "beta": 0.0}, r"in \(0, 1\)"),
        ({"loss": "hidden_mse", "layers": []}, "compares nothing"),
        ({"loss": "hidden_mse", "layers": [[0, -1]]}, r"layers\.0\.1"),
        ({"loss": "hidden_mse", "layers": "first"}, "uniform"),
        ({"loss": "hidden_mse", "layers": [[0, 1, 2]]}, "layers"),
        ({"temperature_end": 0.0}, "temperature_end"),
        ({"weight_end": -1.0}, "weight_end"),
    ],
)
def test_what_a_loss_does_not_take_is_refused(words, message):
    """An option that does nothing looks like one that does not help."""
    with pytest.raises(RecipeError, match=message):
        LossTerm(**words)


def test_what_a_loss_takes_is_kept():
    """A list from YAML is a tuple of pairs."""
    assert LossTerm(loss="hidden_mse", layers=[[0, 1], [1, 3]]).layers == ((0, 1), (1, 3))
    assert LossTerm(loss="jsd", beta=0.1, temperature=2.0, temperature_end=1.0).beta == 0.1
    assert DistillationConfig(alpha=0.9, alpha_end=0.1, losses=(LossTerm(),)).alpha_end == 0.1
