"""The ``pruning`` section refuses what cannot be meant, with value and range."""

import pytest

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.config import PruningConfig, as_tuple


@pytest.mark.parametrize("value", [1.0, -0.1, 1.5, float("nan"), float("inf"), "0.5", True, None])
def test_sparsity_outside_its_range_is_refused_with_the_range(value):
    """Sparsity 1.0 removes the model; ``true`` is 1 in Python; "0.5" is a typo of somebody's template."""
    with pytest.raises(RecipeError, match=r"PruningConfig\.sparsity: must be a number in \[0, 1\), got "):
        PruningConfig(sparsity=value)


@pytest.mark.parametrize("value", [0, 0.0, 0.999, 0.5])
def test_sparsity_in_its_range_is_taken_as_it_is(value):
    assert PruningConfig(sparsity=value).sparsity == value


@pytest.mark.parametrize(("begin", "end"), [(500, 500), (501, 500), (0, 0), (0, -5)])
def test_an_empty_window_is_refused(begin, end):
    with pytest.raises(RecipeError, match=f"schedule never fires: begin_step {begin} >= end_step {end}"):
        PruningConfig(sparsity=0.5, begin_step=begin, end_step=end)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"begin_step": -1}, "begin_step"),
        ({"interval": 0}, "interval"),
        ({"criterion": "magnitud"}, "Did you mean 'magnitude'"),
        ({"schedule": "cubik"}, "Did you mean 'cubic'"),
        ({"structure": "heads"}, "structure"),
        ({"round_to": 8}, "round_to 8 would be ignored with structure: unstructured"),
    ],
)
def test_words_that_cannot_be_meant_are_refused(words, says):
    """``round_to`` with unstructured pruning would be read by nobody."""
    with pytest.raises(RecipeError, match=says):
        PruningConfig(sparsity=0.5, **words)


def test_round_to_is_taken_with_ffn_and_has_a_default_there():
    assert PruningConfig(sparsity=0.5, structure="ffn").round_to == 8
    assert PruningConfig(sparsity=0.5, structure="ffn", round_to=64).round_to == 64


def test_one_config_is_a_tuple_of_one():
    config = PruningConfig(sparsity=0.5)
    assert as_tuple(config) == as_tuple([config]) == (config,)
