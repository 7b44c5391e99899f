"""Several teachers that speak as one."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_shrink.distillation.outputs import Kind, check_shapes, kind_of
from hf_shrink.distillation.positions import is_about_spans
from hf_shrink.distillation.teacher import Teacher
from hf_shrink.errors import MismatchError
from hf_shrink.sentences import gives_sentences
from hf_shrink.tasks import SENTENCES

Combine = Literal["mean", "confidence"]


class Ensemble:
    """Teachers whose mean is learnt: of their probabilities, or of their values where outputs are values.

    Args:
        teachers: one or more; each brings its classes into the student's order.
        combine: ``mean`` weighs all alike; ``confidence`` weighs each at each position by ``exp(-entropy)`` of what it says, so
            that one who is sure counts more than one who guesses. Values have no entropy: there it is the plain mean.
        problem_type: what the student's config says of its outputs.
    """

    label_order = None

    def __init__(self, teachers: Sequence[Teacher], *, combine: Combine = "mean", problem_type: str | None = None) -> None:
        self.teachers = tuple(teachers)
        self.combine = combine
        self.words: int | None = None
        self.problem_type = SENTENCES if gives_sentences(teachers[0].model) else problem_type
        self.accepts = tuple(dict.fromkeys(name for teacher in teachers for name in teacher.accepts))

    def over(self, words: int | None) -> "Ensemble":
        """The same, speaking of the first ``words`` words alone; None for all, of which no vocabulary may have more."""
        same = copy.copy(self)
        same.words = words
        return same

    def under(self, autocast: torch.dtype | None) -> "Ensemble":
        """The same, each of them ``Teacher.under`` it."""
        same = copy.copy(self)
        same.teachers = tuple(teacher.under(autocast) for teacher in self.teachers)
        return same

    @property
    def precision(self) -> torch.dtype | None:
        """That of autocast, where one of them answers under it."""
        return next((each.precision for each in self.teachers if each.precision is not None), None)

    @property
    def models(self) -> list[Any]:
        """Those that teach."""
        return [teacher.model for teacher in self.teachers]

    def to(self, device: torch.device) -> None:
        """Move all of them there that can be moved."""
        for teacher in self.teachers:
            teacher.to(device)

    def ordered(self, logits: Tensor) -> Tensor:
        """The logits as they are: each teacher has brought its own into order."""
        return logits

    def outputs(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """What they say together about a batch, without gradient: ``logits`` of their mean.

        Raises:
            MismatchError: their logits differ in shape, or a batch without labels does not say what they are.
        """
        if "labels" not in inputs and not is_about_spans(inputs):
            raise MismatchError(
                "several teachers: a batch without 'labels', by which their outputs are told to be classes or sets of labels.\n"
                "Keep the labels of the training, in a collator too."
            )
        logits = [teacher(inputs)[..., : self.words] for teacher in self.teachers]
        for other in logits[1:]:
            check_shapes(logits[0], other, "two teachers' logits")
        stacked = torch.stack([each.to(logits[0].device).float() for each in logits])
        kind: Kind = "classes" if is_about_spans(inputs) else kind_of(stacked, inputs["labels"], self.problem_type)
        return {"logits": combined(stacked, kind, self.combine)}


def combined(logits: Tensor, kind: Kind, combine: Combine) -> Tensor:
    """Logits of the mean of several teachers.

    Args:
        logits: float32, ``[teachers, ..., outputs]``.
        kind: what the outputs are.
        combine: how the teachers are weighed.

    Returns:
        ``[..., outputs]``: for classes the logarithm of the mean probability, for labels its log-odds, else the mean.
    """
    if kind in ("values", "vectors"):
        return logits.mean(dim=0)
    yes, no = (F.log_softmax(logits, dim=-1), None) if kind == "classes" else (F.logsigmoid(logits), F.logsigmoid(-logits))
    entropy = -(yes.exp() * yes).sum(dim=-1) if no is None else -(yes.exp() * yes + no.exp() * no).sum(dim=-1)
    weights = F.log_softmax(-entropy if combine == "confidence" else torch.zeros_like(entropy), dim=0)[..., None]
    said = (yes + weights).logsumexp(dim=0)
    return said if no is None else said - (no + weights).logsumexp(dim=0)
