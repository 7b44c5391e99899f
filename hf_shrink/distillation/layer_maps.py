"""Which layer of the student learns from which layer of the teacher."""

from collections.abc import Sequence
from typing import Literal

from hf_shrink.errors import MismatchError

Pair = tuple[int, int]


def layer_pairs(
    layers: Literal["uniform", "last"] | Sequence[Pair], student: int, teacher: int, *, where: str
) -> tuple[Pair, ...]:
    """Pairs of (student layer, teacher layer), counted from 0.

    ``uniform`` spreads the teacher's layers evenly and pairs last with last: student layer i of s learns from layer
    ``round((i + 1) * t / s) - 1`` of t. ``last`` is the last pair alone.

    Args:
        layers: a name or pairs.
        student: how many layers the student has.
        teacher: how many layers the teacher has.
        where: what asks, for the error.

    Raises:
        MismatchError: a pair names a layer that is not there.
    """
    if layers == "last":
        return ((student - 1, teacher - 1),)
    if layers == "uniform":
        return tuple((i, max((2 * (i + 1) * teacher + student) // (2 * student) - 1, 0)) for i in range(student))
    for ours, theirs in layers:
        if not 0 <= ours < student or not 0 <= theirs < teacher:
            raise MismatchError(
                f"{where}: layers [{ours}, {theirs}] name a layer that is not there: the student has layers 0..{student - 1}, "
                f"the teacher 0..{teacher - 1}."
            )
    return tuple((int(ours), int(theirs)) for ours, theirs in layers)
