"""What a weight is worth: pure functions from a weight to scores, high = keep."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

Stats: TypeAlias = Mapping[str, Tensor]
"""What a criterion asked for in ``needs``, by that name; empty where it asked for nothing."""


@dataclass(frozen=True)
class Criterion:
    """How to score, and what has to be recorded first.

    Attributes:
        function: ``(weight, stats) -> scores``; weight ``[out_features, in_features]``, scores float32 of that shape.
        needs: names of the statistics that ``function`` reads from ``stats``.
    """

    function: Callable[[Tensor, Stats], Tensor]
    needs: tuple[str, ...] = ()


def magnitude(weight: Tensor, stats: Stats) -> Tensor:
    """``|W|``, float32: small weights change the output least when the inputs are of one size."""
    return weight.detach().float().abs()


CRITERIA: Mapping[str, Criterion] = {"magnitude": Criterion(magnitude)}
