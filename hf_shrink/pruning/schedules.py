"""How sparsity rises with the step: pure functions, no counter, no model.

Every schedule takes ``(step, *, begin_step, end_step, sparsity)`` with ``begin_step < end_step``, all in optimizer steps,
and returns a fraction in ``[0, sparsity]``: 0 before ``begin_step``, never falling, exactly ``sparsity`` from ``end_step`` on.
"""

from collections.abc import Mapping
from typing import Protocol


class Schedule(Protocol):
    """The signature of every entry of ``SCHEDULES``."""

    def __call__(self, step: int, *, begin_step: int, end_step: int, sparsity: float) -> float: ...


def constant(step: int, *, begin_step: int, end_step: int, sparsity: float) -> float:
    """All of ``sparsity`` at ``begin_step``, in one jump; the window only has to contain a step, its end changes nothing."""
    return sparsity if step >= begin_step else 0.0


def linear(step: int, *, begin_step: int, end_step: int, sparsity: float) -> float:
    """The same amount more in every step between the ends: ``sparsity * progress``."""
    return sparsity * progress(step, begin_step=begin_step, end_step=end_step)


def cubic(step: int, *, begin_step: int, end_step: int, sparsity: float) -> float:
    """``sparsity * (1 - (1 - progress)**3)``: fast while there is much to spare, slow last (arXiv:1710.01878, eq. 1)."""
    return sparsity * (1.0 - (1.0 - progress(step, begin_step=begin_step, end_step=end_step)) ** 3)


def progress(step: int, *, begin_step: int, end_step: int) -> float:
    """How far ``step`` is through the window: 0 up to ``begin_step``, 1 from ``end_step`` on."""
    return min(max((step - begin_step) / (end_step - begin_step), 0.0), 1.0)


def held(step: int, *, begin_step: int, end_step: int, interval: int) -> int:
    """The latest step, not after ``step``, at which masks may change: ``begin_step`` plus multiples of ``interval``.

    From ``end_step`` on the step is returned as it is, so the last change falls on ``end_step`` whatever the interval.
    """
    if step < begin_step or step >= end_step:
        return step
    return step - (step - begin_step) % interval


SCHEDULES: Mapping[str, Schedule] = {"constant": constant, "linear": linear, "cubic": cubic}
