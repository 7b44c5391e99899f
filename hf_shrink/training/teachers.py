"""Whoever a Trainer was given to learn from, as one teacher."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import nn

from hf_shrink.distillation.cached import CachedTeacher
from hf_shrink.distillation.config import DistillationConfig
from hf_shrink.distillation.crossing import CrossingTeacher
from hf_shrink.distillation.ensemble import Ensemble
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.training.accounting import predicts_next_token

AnyTeacher: TypeAlias = nn.Module | Teacher | Ensemble | CachedTeacher | Sequence[nn.Module | Teacher]
"""One who teaches, several, or what they once said."""


def as_one(teacher: AnyTeacher, config: DistillationConfig, student: Any) -> Teacher | Ensemble | CachedTeacher:
    """One teacher who can be asked; models are frozen.

    Args:
        teacher: as a Trainer was given it.
        config: its losses and how several are combined.
        student: the model inside its adapters.

    Raises:
        RecipeError: nobody, or ``combine`` for one.
        MismatchError: a loss across tokenizers with several teachers, or with models that predict no next token.
    """
    one: Teacher | Ensemble | CachedTeacher
    if isinstance(teacher, Teacher | Ensemble | CachedTeacher):
        one = teacher
    elif isinstance(teacher, nn.Module):
        one = Teacher(teacher)
    elif not teacher:
        raise RecipeError("teacher: an empty list teaches nothing. Pass a model, or several.")
    else:
        kind = getattr(getattr(student, "config", None), "problem_type", None)
        each = [one if isinstance(one, Teacher) else Teacher(one) for one in teacher]
        one = Ensemble(each, combine=config.combine or "mean", problem_type=kind)
    if config.combine not in (None, (how := getattr(one, "combine", None))):
        said = f"these are combined by {how}" if how else "there is one teacher"
        raise RecipeError(f"distillation.combine: {config.combine} would be ignored, {said}; remove it.")
    return _with_own_tokenizer(one, student) if config.crosses else one


def models_of(teacher: AnyTeacher) -> list[nn.Module]:
    """Those that teach, before any of them is frozen."""
    if isinstance(teacher, nn.Module):
        return [teacher]
    if isinstance(teacher, Teacher | Ensemble | CachedTeacher):
        return list(teacher.models)
    return [model for each in teacher for model in models_of(each)]


def inside(model: Any) -> Any:
    """The model inside its adapters."""
    return getattr(model, "get_base_model", lambda: model)()


def _with_own_tokenizer(one: Teacher | Ensemble | CachedTeacher, student: Any) -> CrossingTeacher:
    if not isinstance(one, Teacher):
        raise MismatchError("distillation: uld needs one live teacher, whose tokens stand in the rows. Pass one model.")
    for who, model in (("student", student), ("teacher", inside(one.model))):
        if not predicts_next_token(model):
            raise MismatchError(
                f"distillation: uld compares causal language models, and the {who} is a {type(model).__name__}.\n"
                "Use forward_kl, and a teacher with the student's tokenizer."
            )
    return one if isinstance(one, CrossingTeacher) else CrossingTeacher(one.model)
