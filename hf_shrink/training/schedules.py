"""Learning rates that fall in steps: what transformers' schedulers have no name for."""

from hf_shrink.errors import RecipeError
from hf_shrink.training.config import StepDecay


def falling(step: int, *, config: StepDecay, warmup: int) -> float:
    """The part of the learning rate that is used after ``step`` optimizer steps.

    It rises in a straight line over ``warmup`` steps, then is ``factor ** n`` after ``n`` falls; a fall at step ``s`` counts
    from ``s`` on.
    """
    if step < warmup:
        return step / warmup
    falls = step // config.every if config.every is not None else sum(at <= step for at in config.at)
    return float(config.factor**falls)


def check_falls(config: StepDecay, steps: int) -> None:
    """A RecipeError where some fall would come when the training has ended; ``steps`` is its length."""
    last = config.at[-1] if config.at else config.every
    assert last is not None, "the config has one of them"
    if last >= steps:
        key = "at" if config.at else "every"
        raise RecipeError(f"optimization.schedule.{key}: step {last} never comes, the training ends after {steps}; lower it.")
