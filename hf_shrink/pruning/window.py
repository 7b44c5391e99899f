"""When one ``pruning`` entry acts: its schedule between two checked ends."""

from dataclasses import dataclass

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.schedules import SCHEDULES, held, iterative
from hf_shrink.tables import pick


@dataclass(frozen=True)
class Window:
    """A schedule with its ends filled in, in optimizer steps."""

    schedule: str
    begin_step: int
    end_step: int
    interval: int
    rounds: int

    def at(self, step: int, sparsity: float) -> float:
        """The fraction in ``[0, sparsity]`` that is removed after ``step`` optimizer steps."""
        held_step = held(step, begin_step=self.begin_step, end_step=self.end_step, interval=self.interval)
        ends = {"begin_step": self.begin_step, "end_step": self.end_step, "sparsity": sparsity}
        if self.schedule == "iterative":
            return iterative(held_step, **ends, rounds=self.rounds)  # type: ignore[arg-type]
        return pick(SCHEDULES, self.schedule, "schedule")(held_step, **ends)  # type: ignore[arg-type]

    def is_open(self, step: int) -> bool:
        """True at the steps at which masks may change."""
        inside = self.begin_step <= step <= self.end_step
        return inside and (step == self.end_step or (step - self.begin_step) % self.interval == 0)

    def settled(self, sparsity: float | None) -> int:
        """The first step after which nothing more is removed; for a threshold (``sparsity`` None) the last of the window."""
        if sparsity is None or self.at(self.begin_step, sparsity) < sparsity:
            return self.end_step
        return self.begin_step


def window_of(config: PruningConfig, total_steps: int, where: str) -> Window:
    """The window of ``config`` in a training of ``total_steps`` optimizer steps; ``end_step: null`` is the last of them.

    Raises:
        RecipeError: the schedule would begin or end after training has; ``where`` is the entry, as in ``pruning.0``.
    """
    end_step = total_steps if config.end_step is None else config.end_step
    if config.begin_step >= total_steps:
        raise RecipeError(
            f"{where}.begin_step: schedule never fires: begin_step {config.begin_step} >= {total_steps} steps; lower it."
        )
    window = Window(config.schedule, config.begin_step, end_step, config.interval, config.rounds)
    target = 1.0 if config.fraction is None else config.fraction
    reached = window.at(total_steps, target)
    if reached < target or (config.fraction is None and end_step > total_steps):
        goal = f"would stop at sparsity {reached:.2f}, not {target:.2f}" if config.fraction is not None else "never reached"
        raise RecipeError(
            f"{where}.end_step: end_step {end_step} > {total_steps} steps; {goal}. Lower end_step or leave it out."
        )
    return window
