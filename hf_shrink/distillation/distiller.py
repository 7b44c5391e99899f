"""Mix the task loss with distillation. The only place that reduces a distillation loss."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_shrink.distillation.config import DistillationConfig, LossTerm
from hf_shrink.distillation.losses import LOSSES
from hf_shrink.distillation.positions import kept_positions, targets
from hf_shrink.distillation.streaming import Heads, streamed
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.errors import MismatchError, NonFiniteError
from hf_shrink.lines import few


class Distiller:
    """``(1 - alpha) * task + alpha * (sum of weight * term)``, each term a mean over the positions that count.

    Args:
        config: alpha and the terms.
        teacher: gives the logits to learn from.
        shifts_labels: whether the student's loss moves the labels by one, as causal language models do.
    """

    def __init__(self, config: DistillationConfig, teacher: Teacher, *, shifts_labels: bool = False) -> None:
        self.config = config
        self.teacher = teacher
        self.shifts_labels = shifts_labels
        self._terms = _named(config.losses)
        self._totals: dict[str, Tensor] = {}

    @property
    def streams(self) -> bool:
        """Whether the terms can be had a few rows at a time: they read nothing but logits, and classes stand in one order."""
        return self.config.alpha > 0 and self.teacher.label_order is None

    def positions(self, inputs: Mapping[str, Any]) -> Tensor:
        """True at each position of the batch that counts, the shape of its labels."""
        return kept_positions(inputs, shifts_labels=self.shifts_labels)

    def mix(
        self,
        task_loss: Tensor,
        student_outputs: Mapping[str, Tensor],
        inputs: Mapping[str, Any],
        count: Tensor | float | None = None,
    ) -> Tensor:
        """The training loss of one micro-batch, a scalar.

        Args:
            task_loss: scalar, already on the scale on which micro-batches add up to an optimizer step.
            student_outputs: with ``logits`` ``[..., classes]``.
            inputs: the batch both models see, with its labels.
            count: positions that count in the whole optimizer step; None where this batch is the whole step.

        Raises:
            MismatchError: the logits of the two models, or the labels, differ in shape.
            NonFiniteError: the teacher's logits hold a NaN or an infinity where it counts.
        """
        kept = self.positions(inputs)
        student, teacher = self._logits(student_outputs["logits"], inputs, kept)
        divisor = kept.sum().clamp(min=1) if count is None else count
        mixed = torch.zeros((), device=student.device)
        self._record("task", task_loss)
        for name, term in self._terms.items():
            value = _value(term, student, teacher).sum() / divisor
            self._record(name, value)
            mixed = mixed + term.weight * value
        alpha = self.config.alpha
        return task_loss if alpha == 0 else (1 - alpha) * task_loss + alpha * mixed

    def stream(
        self,
        run_student: Callable[[], Any],
        heads: Heads,
        inputs: Mapping[str, Any],
        *,
        task_count: Tensor | float,
        count: Tensor | float,
    ) -> Tensor:
        """What ``mix`` gives, for causal language models whose logits would not fit: they are never all there.

        Args:
            run_student: calls the student without labels.
            heads: the last products of both models.
            inputs: the batch both models see, with its labels.
            task_count: what the sum of the task loss is divided by.
            count: what the sums of the terms are divided by.

        Raises:
            MismatchError: the vocabularies differ in size.
            NonFiniteError: the teacher's logits hold a NaN or an infinity where it counts.
        """
        alpha, terms = self.config.alpha, tuple(self._terms.values())
        counts = [torch.as_tensor(n, dtype=torch.float32) for n in (task_count, *[count] * len(terms))]
        weights = torch.tensor([1 - alpha, *(alpha * term.weight for term in terms)])
        divisors = torch.stack(counts).to(heads.student.weight.device)
        found = streamed(
            run_student,
            heads,
            self.teacher.before(heads.teacher, inputs),
            targets=targets(inputs),
            kept=self.positions(inputs),
            terms=lambda student, teacher: [_value(term, student, teacher) for term in terms],
            factors=weights.to(divisors.device) / divisors,
        )
        _refuse_not_finite(found.bad_rows)
        for name, value in zip(("task", *self._terms), found.sums / divisors, strict=True):
            self._record(name, value)
        return found.total

    def read(self, steps: int) -> dict[str, Tensor]:
        """Mean of each term, and of the task loss, over the ``steps`` optimizer steps since the last call."""
        means = {f"loss/{name}": total / max(steps, 1) for name, total in self._totals.items()}
        self._totals = {}
        return means

    def _record(self, name: str, value: Tensor) -> None:
        self._totals[name] = self._totals.get(name, 0.0) + value.detach().float()

    def _logits(self, student: Tensor, inputs: Mapping[str, Any], kept: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both models at the positions that count, ``[positions, classes]`` each."""
        teacher = self.teacher(inputs).to(student.device)
        if student.shape != teacher.shape or student.shape[-1] < 2:
            raise MismatchError(
                f"distillation: student logits {list(student.shape)}, teacher logits {list(teacher.shape)}; "
                "both need the same shape and at least two classes.\nGive both models the same labels and vocabulary."
            )
        if kept.numel() != student[..., 0].numel():
            raise MismatchError(
                f"distillation: labels {list(kept.shape)} give no class to each position of logits {list(student.shape)}."
            )
        kept = kept.reshape(student.shape[:-1])
        bad = kept & ~teacher.isfinite().all(dim=-1)
        _refuse_not_finite(bad.reshape(len(bad), -1).any(dim=-1).nonzero().flatten().tolist())
        return student[kept], teacher[kept]


def _value(term: LossTerm, student: Tensor, teacher: Tensor) -> Tensor:
    return LOSSES[term.loss].function(student, teacher, temperature=term.temperature)


def _refuse_not_finite(rows: Sequence[int]) -> None:
    if rows:
        raise NonFiniteError(f"teacher logits: NaN or infinity in batch rows {few(rows)}.")


def _named(terms: tuple[LossTerm, ...]) -> dict[str, LossTerm]:
    """Terms by the name they are logged under: a loss used twice is ``forward_kl`` and ``forward_kl_2``."""
    named: dict[str, LossTerm] = {}
    for term in terms:
        again = sum(other.loss == term.loss for other in named.values())
        named[f"{term.loss}_{again + 1}" if again else term.loss] = term
    return named
