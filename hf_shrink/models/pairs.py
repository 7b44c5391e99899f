"""Do a student and its teacher speak of the same classes and the same tokens?"""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_shrink.class_names import label_order, labels_of
from hf_shrink.errors import MismatchError
from hf_shrink.tasks import problem_type_of

_PROBE = "Zoë's 2 CATS aren't here; naïve ﬁt, 東京 (1,000.5 €)"  # case, accents, a ligature, digits, two scripts


@dataclass(frozen=True)
class Pair:
    """How to read a teacher for a student.

    Attributes:
        label_order: ``teacher_logits[..., label_order]`` stands in the student's order; None where it does already.
        notes: what was done about it, one sentence each.
    """

    label_order: tuple[int, ...] | None
    notes: tuple[str, ...]


def check_pair(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    *,
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    classes: bool = True,
    crosses: bool | None = None,
) -> Pair:
    """Compare two models that are to see the same token ids and predict the same classes, or the same tokens.

    Args:
        classes: whether the models predict classes. These are compared by name; only where both models have none
            (``LABEL_0``, ...) their order is trusted.
        crosses: True where a loss compares them whatever their tokens are, False where one could be asked for, None where there
            is none for the task.

    Raises:
        MismatchError: one and the same model, other classes, outputs of another kind or other token ids. Each of them would
            train without an error.
    """
    if teacher is student:
        raise MismatchError("teacher: it is the student itself, whose loss is always 0. Load it a second time.")
    order = label_order(labels_of(student), labels_of(teacher)) if classes else None
    if classes:
        _check_problem(problem_type_of(student.config), problem_type_of(teacher.config))
    if crosses:
        return Pair(None, ("reads the texts in its own tokens, the n-th beside the student's n-th",))
    other = "" if crosses is None else ", or, to compare across tokenizers, the loss uld"
    way_out = f"Use a teacher with the student's tokenizer{other}."
    _check_vocabularies(student_tokenizer, teacher_tokenizer, way_out)
    if order is None:
        return Pair(None, ())
    return Pair(order, (f"Teacher labels are reordered by name to {', '.join(labels_of(student))}.",))


def _check_problem(student: str, teacher: str) -> None:
    """A softmax and a sigmoid over the same names are not the same answers."""
    if student != teacher:
        raise MismatchError(
            f"teacher: its config says it is for {teacher}, the student is for {student}.\n"
            f"Use a teacher of the same task; if it is one, set problem_type to {student} in its config."
        )


def _check_vocabularies(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, way_out: str) -> None:
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    conflicts = sorted((i, token) for token, i in ours.items() if theirs.get(token, i) != i)
    missing = sorted(
        [(i, t) for t, i in ours.items() if t not in theirs] + [(i, t) for t, i in theirs.items() if t not in ours]
    )
    if conflicts or missing:
        _, token = (conflicts or missing)[0]
        raise MismatchError(
            f"teacher: its tokenizer differs from the student's: {len(conflicts)} conflicting ids, {len(missing)} missing; "
            f"first: {token!r} {ours.get(token, 'missing')} vs {theirs.get(token, 'missing')}.\n"
            f"{way_out}"
        )
    if (mine := _ids(student)) != (yours := _ids(teacher)):
        place = next((i for i, (a, b) in enumerate(zip(mine, yours, strict=False)) if a != b), min(len(mine), len(yours)))
        raise MismatchError(
            f"teacher: its tokenizer has the student's vocabulary but splits a text otherwise: {_PROBE!r} becomes "
            f"{mine[place : place + 3]} vs {yours[place : place + 3]} from token {place}.\n"
            "Use the same casing, normalisation and special tokens in both."
        )


def _ids(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    return list(tokenizer(_PROBE)["input_ids"])
