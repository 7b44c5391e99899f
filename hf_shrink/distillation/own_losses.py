"""Losses of a user's own: a name of the table, a ``Loss``, or just a function, looked at while it works."""

import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_shrink.distillation.losses import ATTENTION_READS, LOSSES, Loss, LossFunction
from hf_shrink.errors import RecipeError
from hf_shrink.tables import Recorded, own_name, pick

OPTIONS = frozenset({"temperature", "beta", "labels"})
"""What a loss may take beside the two models' outputs; the first two are keys of a term."""

_ANYTHING = frozenset({"classes", "places", "labels", "values", "vectors"})


def as_loss(value: str | Loss | LossFunction | Recorded) -> Loss:
    """The loss of that name, or a user's own: a ``Loss``, or a function ``(student_logits, teacher_logits) -> [...]``.

    A function that has parameters called ``temperature``, ``beta`` or ``labels`` takes these. It gets float32, the teacher
    without gradient. What it gives is looked at each time, since a mean in place of one number a position would let padding
    count, and weigh micro-batches by their rows, in silence.

    Raises:
        RecipeError: an unknown name, or nothing that compares; and where the function gives something of another shape, or
            something without a gradient.
    """
    if isinstance(value, str):
        if "." in value:
            raise RecipeError(
                f"loss: {value!r:.80} is not in the table: a recipe cannot carry a function of your own. "
                "Pass it in Python as LossTerm(loss=my_function), or name a loss of the table."
            )
        return pick(LOSSES, value, "loss")
    if isinstance(value, Recorded):  # nothing runs it: it is there to be compared
        return Loss(_unknown, takes=OPTIONS - {"labels"}, outputs=_ANYTHING, layers="uniform")
    if any(value is known for known in LOSSES.values()):
        return value  # type: ignore[return-value]
    if isinstance(value, Loss):
        function, name = value.function, own_name(value.function)
        if not value.takes <= OPTIONS:
            raise RecipeError(f"loss {name}: takes {min(value.takes - OPTIONS)!r}; allowed: {', '.join(sorted(OPTIONS))}.")
        if value.reads not in ("logits", "embeddings") and value.layers is None:
            raise RecipeError(f"loss {name}: reads {value.reads}, but of which layers? Add layers='uniform' or layers='last'.")
        return replace(value, function=_checked(function, name, 2 if value.reads in ATTENTION_READS else 1))
    if not callable(value):
        raise RecipeError(f"loss: got {value!r:.60}; pass a name, a Loss or a function (student, teacher) -> values.")
    return Loss(_checked(value, own_name(value), 1), takes=_options_of(value), outputs=_ANYTHING)


@dataclass(frozen=True)
class _Checked:
    """A user's function whose values are looked at.

    Attributes:
        inner: dimensions of the outputs that one number stands for.
    """

    function: LossFunction
    name: str
    inner: int

    def __call__(self, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
        values = self.function(student.float(), teacher.detach().float(), **options)
        expected = student.shape[: student.ndim - self.inner]
        if not isinstance(values, Tensor) or values.shape != expected:
            came = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise RecipeError(
                f"loss {self.name}: gave {came} for outputs {list(student.shape)}; allowed: {list(expected)}.\n"
                "Return one number a position, and leave the mean to the trainer."
            )
        if student.requires_grad and torch.is_grad_enabled() and not values.requires_grad:
            raise RecipeError(f"loss {self.name}: no gradient reaches the student. Compute with torch, without detach or item.")
        return values.float()


def _unknown(student: Tensor, teacher: Tensor) -> Tensor:
    raise AssertionError("a loss that is known by its name alone")


def _checked(function: LossFunction, name: str, inner: int) -> LossFunction:
    return function if isinstance(function, _Checked) else _Checked(function, name, inner)


def _options_of(function: LossFunction) -> frozenset[str]:
    """Which of ``OPTIONS`` a function has as parameters; it may have two more, and others only with a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C: it says nothing of what it takes
        return frozenset()
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    named = {p.name for p in plain} & OPTIONS
    warm = next((p.default for p in plain if p.name == "temperature"), 1.0)
    if warm is not inspect.Parameter.empty and warm != 1:
        raise RecipeError(
            f"loss {own_name(function)}: its default temperature {warm} would be ignored, the term says it.\n"
            f"Write temperature=1.0 there, and LossTerm(..., temperature={warm})."
        )
    needed = [p.name for p in plain if p.default is p.empty and p.name not in OPTIONS]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    given = sum(p.kind is not p.KEYWORD_ONLY and p.name not in OPTIONS for p in plain)
    if len(needed) > 2 or (given < 2 and not any_number):
        raise RecipeError(
            f"loss {own_name(function)}: takes ({', '.join(p.name for p in plain)}).\n"
            f"Write a function (student, teacher), with {', '.join(sorted(OPTIONS))} as further parameters where it reads them."
        )
    return frozenset(named)
