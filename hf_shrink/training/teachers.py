"""Whoever a Trainer was given to learn from, as one teacher."""

import copy
import logging
from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import nn
from transformers import PreTrainedModel

from hf_shrink.class_names import label_order, named_classes
from hf_shrink.config import as_given
from hf_shrink.distillation.cached import CachedTeacher
from hf_shrink.distillation.config import DistillationConfig
from hf_shrink.distillation.crossing import CrossingTeacher
from hf_shrink.distillation.ensemble import Ensemble
from hf_shrink.distillation.own_losses import as_loss
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.families import inner_size
from hf_shrink.lines import few
from hf_shrink.quantization.bitsandbytes import settle
from hf_shrink.repacking import refuse_repacked
from hf_shrink.training.accounting import predicts_next_token

AnyTeacher: TypeAlias = nn.Module | Teacher | Ensemble | CachedTeacher | Sequence[nn.Module | Teacher]
"""One who teaches, several, or what they once said."""

logger = logging.getLogger(__name__)


def as_one(teacher: AnyTeacher, config: DistillationConfig, student: Any) -> Teacher | Ensemble | CachedTeacher:
    """One teacher who can be asked; models are frozen, and classes of the same names in another order are reordered.

    Args:
        teacher: as a Trainer was given it.
        config: its losses and how several are combined.
        student: the model inside its adapters.

    Raises:
        RecipeError: nobody, something that is no teacher or no ``DistillationConfig``, or ``combine`` for one.
        MismatchError: classes of other names, or of a cache in another order; a loss across tokenizers with several teachers,
            or with models that predict no next token.
        IntegrityError: 4-bit weights that bitsandbytes has repacked for this CPU.
    """
    one: Teacher | Ensemble | CachedTeacher
    config = as_given(config, DistillationConfig, "distillation")
    for model in models_of(teacher):
        refuse_repacked(model, f"teacher: {type(model).__name__}")
        settle(model)
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
    if any(as_loss(term.loss).reads == "logits" for term in config.losses):
        one = _in_order(one, student)
    return _with_own_tokenizer(one, student) if config.crosses else one


def warn_of_smaller(teacher: Teacher | Ensemble | CachedTeacher, student: Any) -> None:
    """Say so where a student is larger than all its teachers: most often the two were swapped."""
    models = [student, *(inside(model) for model in teacher.models)]
    if len(models) < 2 or not all(isinstance(model, PreTrainedModel) for model in models):
        return
    ours, *theirs = map(inner_size, models)
    ours -= sum(parameter.numel() for name, parameter in student.named_parameters() if "lora_" in name)  # beside it
    if ours > max(theirs):
        logger.warning(
            "The student (%s) has %s parameters outside its embeddings, more than its teacher's %s (%s). Were they swapped?",
            type(student).__name__,
            f"{ours:,}",
            f"{max(theirs):,}",
            " and ".join(type(model).__name__ for model in models[1:]),
        )


def models_of(teacher: AnyTeacher) -> list[nn.Module]:
    """Those that teach, before any of them is frozen.

    Raises:
        RecipeError: what teaches nothing, such as the name of a model, or what cannot be one of several.
    """
    if isinstance(teacher, nn.Module):
        return [teacher]
    if isinstance(teacher, Teacher | Ensemble | CachedTeacher):
        return list(teacher.models)
    if not isinstance(teacher, list | tuple):
        raise RecipeError(
            f"teacher: got {teacher!r:.60}; pass a model, a Teacher, a list of both, an Ensemble or a CachedTeacher.\n"
            "A name is none: load the model by from_pretrained first."
        )
    if odd := [each for each in teacher if not isinstance(each, nn.Module | Teacher)]:
        raise RecipeError(f"teacher: got a list with {type(odd[0]).__name__}; a list is of models, each live.")
    return [model for each in teacher for model in models_of(each)]


def inside(model: Any) -> Any:
    """The model inside its adapters."""
    return getattr(model, "get_base_model", lambda: model)()


def _in_order(one: Teacher | Ensemble | CachedTeacher, student: Any) -> Teacher | Ensemble | CachedTeacher:
    """The same with each teacher's classes in the student's order, where both have names and nobody said another order."""
    if isinstance(one, Ensemble):
        ordered = copy.copy(one)
        ordered.teachers = tuple(_reordered(each, student) for each in one.teachers)
        return ordered
    if isinstance(one, CachedTeacher):
        ours, theirs = named_classes(student), one.labels
        if ours and theirs and ours != theirs:
            raise MismatchError(
                f"cache {one.folder.name!r}: written for labels {few(theirs)}, the student has {few(ours)}.\n"
                "Give id2label of the student these names in this order, or write a cache for it."
            )
        return one
    return _reordered(one, student)


def _reordered(one: Teacher, student: Any) -> Teacher:
    ours, theirs = named_classes(student), named_classes(one.model)
    if one.label_order is not None or len(ours) != len(theirs) or len(ours) < 2:
        return one  # other numbers of classes are told by their logits, and without names places are trusted
    try:
        order = label_order(ours, theirs)
    except MismatchError as error:
        way_out = f"Where they mean the same, say in which order: Teacher(model, label_order=range({len(ours)}))."
        raise MismatchError(f"{error}\n{way_out}") from None
    if order is None:
        return one
    logger.warning("The teacher's labels %s are reordered by name to %s.", ", ".join(theirs), ", ".join(ours))
    same = copy.copy(one)
    same.label_order = list(order)
    return same


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
