"""Schedules against values worked out by hand; what all of them have in common is in tests/test_laws.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_shrink.pruning.schedules import constant, cubic, held, linear


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (constant, [0.0, 0.8, 0.8, 0.8, 0.8]),
        (linear, [0.0, 0.0, 0.2, 0.4, 0.8]),
        (cubic, [0.0, 0.0, 0.8 * 37 / 64, 0.8 * 7 / 8, 0.8]),
    ],
)
def test_schedule_has_its_values_at_the_quarters(schedule, expected):
    """A square in place of the cube, or ``progress`` counted from the end, ends at the same sparsity and prunes too early."""
    found = [schedule(step, begin_step=10, end_step=50, sparsity=0.8) for step in (9, 10, 20, 30, 50)]
    assert found == pytest.approx(expected, abs=1e-15)


def test_held_goes_down_to_multiples_counted_from_the_begin_but_keeps_the_end():
    """Multiples counted from 0 would miss the begin; an end off the grid would leave the run short of its sparsity."""
    found = [held(step, begin_step=5, end_step=16, interval=4) for step in range(3, 19)]
    assert found == [3, 4, 5, 5, 5, 5, 9, 9, 9, 9, 13, 13, 13, 16, 17, 18]


@given(st.integers(0, 500), st.integers(0, 100), st.integers(1, 300), st.integers(1, 400))
def test_held_never_goes_forward_nor_before_the_begin(step, begin, length, interval):
    """Masks of a step still to come would make a resumed run differ."""
    found = held(step, begin_step=begin, end_step=begin + length, interval=interval)
    assert min(begin, step) <= found <= step
