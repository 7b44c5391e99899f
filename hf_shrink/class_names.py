"""The names of classes, by which student and teacher are compared."""

import re
from collections.abc import Sequence
from typing import Any

from hf_shrink.errors import MismatchError
from hf_shrink.lines import few

_PLAIN_NAME = re.compile(r"LABEL_\d+")


def labels_of(model: Any) -> list[str]:
    """The names of a model's classes, in the order of its logits."""
    names: dict[Any, str] = dict(model.config.id2label or {})
    return [names[i] for i in sorted(names)]


def are_named(names: Sequence[str]) -> bool:
    """Whether classes have names of their own: ``LABEL_0``, ``LABEL_1``, ... are none."""
    return not all(map(_PLAIN_NAME.fullmatch, names))


def named_classes(model: Any) -> list[str]:
    """The names of the classes that a model's logits are about; empty where they have none, or are about words or places."""
    inside = getattr(model, "get_base_model", lambda: model)()
    classifies = hasattr(inside, "config") and any("Classification" in kind.__name__ for kind in type(inside).__mro__)
    names = labels_of(inside) if classifies else []
    return names if are_named(names) else []


def label_order(student: Sequence[str], teacher: Sequence[str]) -> tuple[int, ...] | None:
    """Where each class of a student stands among a teacher's; None where all stand at the same place.

    Raises:
        MismatchError: other classes, or names that repeat.
    """
    if len(student) != len(teacher):
        raise MismatchError(
            f"teacher: it has {len(teacher)} labels ({few(teacher)}), the student {len(student)} ({few(student)}).\n"
            "Use a teacher of the same classes."
        )
    if len(student) == 1:  # one number needs no name
        return None
    for who, names in (("student", student), ("teacher", teacher)):
        if len(set(names)) < len(names):
            raise MismatchError(f"{who}: label names repeat: {few(names)}. Give each class its own name in id2label.")
    if set(student) != set(teacher):
        only_student, only_teacher = sorted(set(student) - set(teacher)), sorted(set(teacher) - set(student))
        hint = " and the order is unknown" if not are_named(teacher) else ""
        raise MismatchError(
            f"teacher: label names differ{hint}: only the student has {few(only_student)}; only the teacher has "
            f"{few(only_teacher)}.\nSet the same names in id2label of both configs."
        )
    order = tuple(teacher.index(name) for name in student)
    return None if order == tuple(range(len(order))) else order
