"""When one ``pruning`` entry acts: its schedule between two checked ends."""

from dataclasses import dataclass

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.schedules import SCHEDULES, held
from hf_shrink.tables import pick


@dataclass(frozen=True)
class Window:
    """A schedule with its ends filled in, in optimizer steps."""

    schedule: str
    begin_step: int
    end_step: int
    interval: int

    def at(self, step: int, sparsity: float) -> float:
        """The fraction in ``[0, sparsity]`` that is removed after ``step`` optimizer steps."""
        held_step = held(step, begin_step=self.begin_step, end_step=self.end_step, interval=self.interval)
        return pick(SCHEDULES, self.schedule, "schedule")(
            held_step, begin_step=self.begin_step, end_step=self.end_step, sparsity=sparsity
        )


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
    window = Window(config.schedule, config.begin_step, end_step, config.interval)
    reached = window.at(total_steps, config.sparsity)
    if reached < config.sparsity:
        raise RecipeError(
            f"{where}.end_step: end_step {end_step} > {total_steps} steps; would stop at sparsity {reached:.2f}, "
            f"not {config.sparsity:.2f}. Lower end_step or leave it out."
        )
    return window
