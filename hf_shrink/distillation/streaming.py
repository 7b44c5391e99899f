"""One micro-batch of a language model whose logits are never all there: task loss and terms come from the fused product."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_shrink.distillation.fused import Answers, LastProduct, fused_sum
from hf_shrink.distillation.heads import forward_as
from hf_shrink.distillation.positions import IGNORED

Terms = Callable[[Tensor, Any, Tensor], list[Tensor]]
"""``(student_logits, answers, labels) -> values``: ``[n, words]``, ``[n]`` to one number a position for each term."""


@dataclass(frozen=True)
class Heads:
    """The last products of student and teacher, both plain; None for a teacher whose answers are there already.

    The teacher's is taken in ``precision``; None for that of its weights.
    """

    student: nn.Linear
    teacher: nn.Linear | None
    precision: torch.dtype | None = None


@dataclass(frozen=True)
class Streamed:
    """What came out of one micro-batch.

    Attributes:
        total: scalar with gradient.
        sums: float32, ``[1 + terms]``: the task loss and each term, not yet divided.
        bad_rows: rows of the batch in which the teacher's logits were not finite where they count.
    """

    total: Tensor
    sums: Tensor
    bad_rows: list[int]


def streamed(
    run_student: Callable[[], Mapping[str, Any]],
    heads: Heads,
    taught: Answers,
    *,
    targets: Tensor,
    kept: Tensor,
    terms: Terms,
    factors: Tensor,
) -> Streamed:
    """Run the student with its last product replaced by the fused one.

    The loss is formed inside the student's forward, so that a wrapper around the student sees every weight used there.
    Positions that count neither for the task nor for a term are dropped before the product.

    Args:
        run_student: calls the student, wrapped or not, without labels.
        heads: of both models.
        taught: what the teacher's head would read, ``[batch, length, width]``; without a head, the teacher's answers.
        targets: the token to predict at each position, ``[batch, length]``; -100 where the task has none.
        kept: True where the terms count, ``[batch, length]``.
        terms: the values of the distillation losses.
        factors: ``[1 + terms]``: what the sums of task and terms are worth in the total.
    """
    counts = kept | (targets != IGNORED)
    at, wanted, places = targets[counts], kept[counts], counts.nonzero()
    bad = torch.zeros(len(at), dtype=torch.bool, device=at.device)
    results: list[Tensor] = []

    def score(student: Tensor, teacher: Answers, rows: slice) -> Tensor:
        task = F.cross_entropy(student, at[rows], ignore_index=IGNORED, reduction="sum")
        here, labels = wanted[rows], at[rows]
        if not bool(here.all()):
            student, teacher, labels = student[here], teacher[here], labels[here]
        if isinstance(teacher, Tensor) and len(teacher):
            low, high = teacher.aminmax(dim=-1)
            bad[rows.start : rows.stop][here] = ~(low.isfinite() & high.isfinite())
        return torch.stack([task, *(value.sum() for value in terms(student, teacher, labels))])

    known, head = taught[counts], heads.teacher
    if head is None or not isinstance(known, Tensor):
        answers: Callable[[slice], Answers] = known.__getitem__
    else:
        answers = LastProduct(known, head.weight, head.bias, heads.precision)

    def last_product(hidden: Tensor) -> Tensor:
        total, sums = fused_sum(hidden[counts], heads.student, answers, score, factors)
        results.append(sums)
        return total.reshape(1, 1, 1)  # as many dimensions as logits have: some models slice them

    with forward_as(heads.student, last_product):
        outputs = run_student()
    return Streamed(outputs["logits"].sum(), results[0], sorted(set(places[bad, 0].tolist())))
