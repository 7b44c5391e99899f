"""The ``pruning`` section refuses what cannot be meant, with value and range."""

import numpy as np
import pytest

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.config import PruningConfig, as_tuple
from hf_shrink.pruning.criteria import Criterion


@pytest.mark.parametrize("value", [1.0, -0.1, 1.5, float("nan"), float("inf"), "0.5", True])
def test_sparsity_outside_its_range_is_refused_with_the_range(value):
    """Sparsity 1.0 removes the model; ``true`` is 1 in Python; "0.5" is a typo of somebody's template."""
    with pytest.raises(RecipeError, match=r"PruningConfig\.sparsity: must be a number in \[0, 1\), got "):
        PruningConfig(sparsity=value)


@pytest.mark.parametrize("value", [0, 0.0, 0.999, 0.5, np.float64(0.5), np.float32(0.25), np.linspace(0, 0.5, 3)[1]])
def test_sparsity_in_its_range_is_taken_as_it_is(value):
    """A sweep over ``np.linspace`` gives numbers of numpy, which YAML cannot write."""
    found = PruningConfig(sparsity=value).sparsity
    assert found == value and type(found) in (int, float)


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
        ({"structure": "head"}, "structure"),
        ({"pattern": [2, 4]}, r"pattern \(2, 4\) would be ignored with structure: unstructured"),
        ({"structure": "n_of_m", "pattern": [2, 4]}, r"sparsity would be ignored: pattern \[2, 4\] removes 0.5"),
        ({"structure": "n_of_m"}, r"structure: n_of_m needs pattern, such as pattern: \[2, 4\]"),
        ({"structure": "block"}, r"structure: block needs block, such as block: \[16, 16\]"),
        ({"threshold": 0.1}, r"takes sparsity or threshold, one of them; got \['sparsity', 'threshold'\]"),
        ({"structure": "ffn", "threshold": 0.1}, "threshold 0.1 would be ignored with structure: ffn"),
        ({"structure": "layers", "end_step": 5}, "end_step 5 would be ignored with structure: layers"),
        ({"structure": "vocabulary", "criterion": "magnitude"}, "criterion 'magnitude' would be ignored"),
        ({"rounds": 3}, "rounds 3 would be ignored with schedule: cubic; set schedule: iterative"),
        ({"threshold_in": "std"}, "threshold_in would be ignored without threshold"),
        ({"budget": "macs"}, "budget macs would be ignored with allocation: uniform"),
        ({"criterion": "mutual_information"}, "mutual_information scores heads or neurons"),
        ({"structure": "layers", "criterion": "mutual_information"}, "mutual_information scores heads or neurons"),
        ({"structure": "hidden", "criterion": "mutual_information"}, "mutual_information scores heads or neurons"),
        ({"structure": "hidden", "criterion": "wanda"}, "wanda needs data, and structure: hidden is cut by weights alone"),
        ({"structure": "hidden", "criterion": Criterion(lambda w, s: w, ("taylor",))}, "<lambda> needs data, and structure"),
        (
            {"structure": "block", "block": [2, 2], "criterion": Criterion(None, (), lambda s: s["key"], ("key",))},
            "heads or neu",
        ),
        ({"criterion": "sparsegpt", "allocation": "global"}, "sparsegpt takes sparsity or pattern"),
        ({"interval": 5, "schedule": "constant"}, "interval 5 would be ignored with schedule: constant"),
        ({"allocation": "sensitivity", "budget": "latency"}, "zeros of structure: unstructured save no time"),
        ({"when": "before", "end_step": 5}, "end_step would be ignored with when: before"),
        ({"criterion": "my_scores.own"}, "cannot carry a function of your own"),
        ({"criterion": 3}, r"criterion: must be a name, a Criterion or a function \(weight, stats\) -> scores, got 3"),
        ({"round_to": 8}, "round_to 8 would be ignored with structure: unstructured"),
    ],
)
def test_words_that_cannot_be_meant_are_refused(words, says):
    """``round_to`` with unstructured pruning would be read by nobody."""
    with pytest.raises(RecipeError, match=says):
        PruningConfig(sparsity=0.5, **words)


@pytest.mark.parametrize("pattern", [[4, 4], [5, 4], [0, 4], [2], [2.0, 4]])
def test_a_pattern_keeps_fewer_than_all_and_more_than_none(pattern):
    with pytest.raises(RecipeError, match="pattern"):
        PruningConfig(structure="n_of_m", pattern=pattern)


@pytest.mark.parametrize("structure", ["unstructured", "heads", "ffn", "layers", "hidden", "vocabulary"])
def test_an_entry_that_does_not_say_how_much_is_refused(structure):
    """Nothing would be pruned for hours."""
    with pytest.raises(RecipeError, match=f"structure: {structure} takes sparsity.*got none"):
        PruningConfig(structure=structure)


def test_two_of_four_is_half():
    assert PruningConfig(structure="n_of_m", pattern=[2, 4]).fraction == 0.5


def test_a_schedule_beside_a_threshold_is_refused():
    with pytest.raises(RecipeError, match="schedule 'linear' would be ignored with threshold"):
        PruningConfig(threshold=0.1, schedule="linear")


def test_round_to_is_taken_with_ffn():
    assert PruningConfig(sparsity=0.5, structure="ffn", round_to=64).round_to == 64


def test_one_config_is_a_tuple_of_one():
    config = PruningConfig(sparsity=0.5)
    assert as_tuple(config) == as_tuple([config]) == (config,)
