"""How sparsity rises with the step: pure functions, no counter, no model.

Every schedule takes ``(step, *, begin_step, end_step, sparsity)`` with ``begin_step < end_step``, all in optimizer steps,
and returns a fraction in ``[0, sparsity]``: 0 before ``begin_step``, never falling, exactly ``sparsity`` from ``end_step`` on.
The steps before ``begin_step`` are the warm-up, those after ``end_step`` the cool-down.
"""

import math
from collections.abc import Mapping
from typing import Protocol


class Schedule(Protocol):
    """The signature of every entry of ``SCHEDULES``."""

    def __call__(self, step: int, *, begin_step: int, end_step: int, sparsity: float) -> float: ...


def constant(step: int, *, begin_step: int, end_step: int, sparsity: float) -> float:
    """All of ``sparsity`` at ``begin_step``, in one jump; the window only has to contain a step, its end changes nothing."""
    return sparsity if step >= begin_step else 0.0


def one_shot(step: int, *, begin_step: int, end_step: int, sparsity: float) -> float:
    """All of ``sparsity`` at ``end_step``, in one jump: what comes before only records."""
    return sparsity if step >= end_step else 0.0


def linear(step: int, *, begin_step: int, end_step: int, sparsity: float) -> float:
    """The same amount more in every step between the ends: ``sparsity * progress``."""
    return sparsity * progress(step, begin_step=begin_step, end_step=end_step)


def cubic(step: int, *, begin_step: int, end_step: int, sparsity: float) -> float:
    """``sparsity * (1 - (1 - progress)**3)``: fast while there is much to spare, slow last (arXiv:1710.01878, eq. 1)."""
    return sparsity * (1.0 - (1.0 - progress(step, begin_step=begin_step, end_step=end_step)) ** 3)


def exponential(step: int, *, begin_step: int, end_step: int, sparsity: float) -> float:
    """``1 - (1 - sparsity)**progress``: every step removes the same fraction of what is left."""
    through = progress(step, begin_step=begin_step, end_step=end_step)
    return sparsity if through == 1.0 else min(-math.expm1(through * math.log1p(-sparsity)), sparsity)


def iterative(step: int, *, begin_step: int, end_step: int, sparsity: float, rounds: int = 4) -> float:
    """Prune, recover, prune: ``rounds`` equal jumps, the first at ``begin_step``, the last at ``end_step``; ``rounds`` above 0.

    With one round all goes at ``end_step``.
    """
    if step < begin_step:
        return 0.0
    through = progress(step, begin_step=begin_step, end_step=end_step)
    done = rounds if through == 1.0 else min(1 + math.floor(through * (rounds - 1)), rounds) if rounds > 1 else 0
    return sparsity * done / rounds if done < rounds else sparsity


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


SCHEDULES: Mapping[str, Schedule] = {
    "constant": constant,
    "linear": linear,
    "cubic": cubic,
    "exponential": exponential,
    "one_shot": one_shot,
    "iterative": iterative,
}
