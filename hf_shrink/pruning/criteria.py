"""What a weight or unit is worth, high = keep: the table of criteria, and what each has to have recorded first."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.activations import (
    activation_norm,
    activation_norm_of_units,
    activation_variance,
    activation_variance_of_units,
    wanda,
)
from hf_shrink.pruning.gradients import (
    fisher,
    fisher_of_units,
    movement,
    snip,
    soft_movement,
    taylor,
    taylor_of_units,
)
from hf_shrink.pruning.information import mutual_information
from hf_shrink.pruning.magnitudes import magnitude, random, squared_magnitude
from hf_shrink.pruning.sums import GIVEN, KNOWN
from hf_shrink.pruning.sums import Stats as Stats
from hf_shrink.tables import nearest, pick

WeightFunction: TypeAlias = Callable[[Tensor, Stats], Tensor]


@dataclass(frozen=True)
class Criterion:
    """How to score, and what has to be recorded first.

    Attributes:
        function: ``(weight, stats) -> scores``; weight ``[out_features, in_features]``, scores float32 of that shape. None: it
            is defined for units only.
        needs: names of the statistics that ``function`` reads from ``stats``; ``statistics.py`` lists them.
        unit: ``stats -> scores`` of the units of one group, float32 ``[units]``. None: the scores of ``function`` over all
            weights of a unit, combined.
        unit_needs: names of the statistics that ``unit`` reads.
        combine: how scores of single weights become one of a unit: their sum, or the root of their sum (norm), for scores that
            are squares.
    """

    function: WeightFunction | None
    needs: tuple[str, ...] = ()
    unit: Callable[[Stats], Tensor] | None = None
    unit_needs: tuple[str, ...] = ()
    combine: Literal["sum", "norm"] = "sum"

    @property
    def needs_data(self) -> bool:
        """Whether anything it reads has to be recorded; for units only what their own form reads counts."""
        return bool({*self.needs, *self.unit_needs} - GIVEN)


CRITERIA: Mapping[str, Criterion] = {
    "magnitude": Criterion(magnitude),
    "magnitude_l2": Criterion(squared_magnitude, combine="norm"),
    "random": Criterion(random, ("key",)),
    "movement": Criterion(movement, ("movement",)),
    "soft_movement": Criterion(soft_movement, ("movement",)),
    "taylor": Criterion(taylor, ("taylor",), taylor_of_units, ("unit_taylor",)),
    "snip": Criterion(snip, ("gradient",)),
    "fisher": Criterion(fisher, ("squared_gradient",), fisher_of_units, ("unit_fisher",)),
    "wanda": Criterion(wanda, ("input_norm",)),
    "activation_norm": Criterion(activation_norm, ("input_norm",), activation_norm_of_units, ("unit_norm",)),
    "activation_variance": Criterion(
        activation_variance, ("input_variance",), activation_variance_of_units, ("unit_variance",)
    ),
    "mutual_information": Criterion(None, (), mutual_information, ("unit_samples", "labels")),
}


def as_criterion(value: str | Criterion | WeightFunction) -> Criterion:
    """The criterion of that name, or a user's own: a ``Criterion``, or a function that needs no statistics.

    The scores of a user's function are checked each time, since a wrong shape would be spread over the weight in silence.

    Raises:
        RecipeError: an unknown name, an unknown statistic, or nothing that could score; and where scores have a wrong shape.
    """
    if isinstance(value, str):
        return pick(CRITERIA, value, "criterion")
    if any(value is known for known in CRITERIA.values()):
        return value  # type: ignore[return-value]
    if isinstance(value, Criterion):
        for name in (*value.needs, *value.unit_needs):
            if name not in KNOWN:
                raise RecipeError(
                    f"criterion: unknown statistic {name!r}.{nearest(name, KNOWN)} Known: {', '.join(sorted(KNOWN))}."
                )
        if value.function is None and value.unit is None:
            raise RecipeError("criterion: neither function nor unit is given; pass what scores weights, or units, or both.")
        return value if value.function is None else replace(value, function=_checked(value.function))
    if not callable(value):
        raise RecipeError(f"criterion: got {value!r:.60}; pass a name, a Criterion or a function (weight, stats) -> scores.")
    return Criterion(_checked(value))


@dataclass(frozen=True)
class _Checked:
    """A user's function whose scores are looked at."""

    function: WeightFunction

    def __call__(self, weight: Tensor, stats: Stats) -> Tensor:
        scores = self.function(weight.detach(), stats)
        if not isinstance(scores, Tensor) or scores.shape != weight.shape:
            came = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            name = getattr(self.function, "__name__", "function")
            raise RecipeError(f"criterion {name}: scores {came} for a weight {list(weight.shape)}; return one score a weight.")
        return scores.detach().to(torch.float32)


def _checked(function: WeightFunction) -> WeightFunction:
    return function if isinstance(function, _Checked) else _Checked(function)
