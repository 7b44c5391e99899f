"""Windows: a schedule that cannot finish is refused before training, with numbers."""

import pytest

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.window import window_of


def test_end_step_null_is_the_last_step_of_training():
    """Ending anywhere else leaves the model short of its sparsity, or without a step to recover in."""
    window = window_of(PruningConfig(sparsity=0.8, begin_step=100), 300, "pruning.0")
    assert window.at(299, 0.8) < 0.8 == window.at(300, 0.8)
    assert window.at(100, 0.8) == 0.0 < window.at(101, 0.8)


def test_an_end_after_training_is_refused_with_the_sparsity_it_would_reach():
    """By hand: linear at 300 of 773 steps is 0.8 * 300 / 773 = 0.3105."""
    config = PruningConfig(sparsity=0.8, schedule="linear", end_step=773)
    with pytest.raises(
        RecipeError, match=r"^pruning\.2\.end_step: end_step 773 > 300 steps; would stop at sparsity 0\.31, not 0\.80"
    ):
        window_of(config, 300, "pruning.2")


def test_a_jump_that_has_happened_needs_no_end():
    """Refused, it would be told that it stops at sparsity 0.80, not 0.80."""
    window = window_of(PruningConfig(sparsity=0.8, schedule="constant", begin_step=3, end_step=773), 300, "pruning.0")
    assert [window.at(step, 0.8) for step in (2, 3, 300)] == [0.0, 0.8, 0.8]


@pytest.mark.parametrize("steps", [300, 299, 1])
def test_a_begin_at_or_after_the_last_step_is_refused(steps):
    """The schedule never fires, and the run looks like any other."""
    for words in ({}, {"end_step": 400}):
        with pytest.raises(RecipeError, match=rf"schedule never fires: begin_step 300 >= {steps} steps"):
            window_of(PruningConfig(sparsity=0.8, begin_step=300, **words), steps, "pruning.0")


def test_interval_holds_the_sparsity_between_changes_but_not_at_the_end():
    """By hand, linear over 10 steps to 0.5, changes at 0, 4, 8 and the end."""
    window = window_of(PruningConfig(sparsity=0.5, schedule="linear", interval=4), 10, "pruning.0")
    assert [round(window.at(step, 0.5), 10) for step in range(12)] == [0, 0, 0, 0, 0.2, 0.2, 0.2, 0.2, 0.4, 0.4, 0.5, 0.5]
