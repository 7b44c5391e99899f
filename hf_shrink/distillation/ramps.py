"""Numbers of the loss that change while training goes on."""


def along(start: float, end: float | None, step: int, steps: int) -> float:
    """The straight line from ``start`` at step 0 to ``end`` at the last of ``steps`` steps; ``start`` where there is no end.

    Args:
        step: optimizer steps done, from 0; beyond the last it stays at ``end``.
        steps: how many the whole training has; of one step, the first is the last.
    """
    if end is None:
        return start
    done = min(step / (steps - 1), 1.0) if steps > 1 else 1.0
    return start + (end - start) * done
