"""Laws that every entry of a table keeps: a new entry is under test the moment it is in the table."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_shrink.pruning.criteria import CRITERIA
from hf_shrink.pruning.schedules import SCHEDULES

BEGINS, LENGTHS = st.integers(0, 1_000), st.integers(1, 100_000)
SPARSITIES = st.floats(0.0, 0.999)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@given(begin=BEGINS, length=LENGTHS, sparsity=SPARSITIES, before=st.integers(1, 100), after=st.integers(0, 100))
def test_every_schedule_is_zero_before_its_window_and_exactly_its_sparsity_after(name, begin, length, sparsity, before, after):
    """A schedule that ends at 0.7999 or begins early prunes another number of weights than the card says."""
    window = {"begin_step": begin, "end_step": begin + length, "sparsity": sparsity}
    assert SCHEDULES[name](begin - before, **window) == 0.0
    assert SCHEDULES[name](begin + length + after, **window) == sparsity


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@given(begin=BEGINS, length=st.integers(1, 300), sparsity=SPARSITIES)
def test_every_schedule_never_falls_and_stays_between_its_ends(name, begin, length, sparsity):
    """A schedule that falls would bring weights back, or silently do nothing for a while."""
    steps = range(max(begin - 2, 0), begin + length + 3)
    values = [SCHEDULES[name](step, begin_step=begin, end_step=begin + length, sparsity=sparsity) for step in steps]
    assert values == sorted(values)
    assert min(values) >= 0.0 and max(values) == sparsity


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_every_criterion_gives_finite_floats_of_the_weight_s_shape(name):
    """A criterion that sums over inputs gives one score a row, and broadcasting would hide it."""
    weight = torch.randn(6, 4, dtype=torch.bfloat16)
    before = weight.clone()
    scores = CRITERIA[name].function(weight, dict.fromkeys(CRITERIA[name].needs, torch.rand(4)))
    assert scores.shape == weight.shape and scores.dtype == torch.float32 and bool(torch.isfinite(scores).all())
    assert torch.equal(weight, before), "a criterion only reads"
    assert not scores.requires_grad


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_every_criterion_ranks_a_zero_weight_no_higher_than_a_large_one(name):
    """High = keep: with the sign turned round the pruner removes the best weights and still trains."""
    weight = torch.full((3, 4), 5.0, requires_grad=True)
    with torch.no_grad():
        weight[1, 2] = 0.0
    scores = CRITERIA[name].function(weight, dict.fromkeys(CRITERIA[name].needs, torch.ones(4)))
    assert scores[1, 2] == scores.min() and scores[1, 2] < scores[0, 0]
    assert not scores.requires_grad
