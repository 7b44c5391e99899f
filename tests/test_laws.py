"""Laws that every entry of a table keeps: a new entry is under test the moment it is in the table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
