"""Losses on logits: pure functions, one number a position. Reduction happens in one place, ``Distiller.mix``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """An entry of the table.

    Attributes:
        function: ``(student, teacher, *, temperature) -> [...]``, float32, one number a position.
        reads: what of the two models it compares.
    """

    function: Callable[..., Tensor]
    reads: Literal["logits"] = "logits"


def forward_kl(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) at each position, times ``temperature**2``.

    The square keeps gradients of the same size when the temperature changes (arXiv:1503.02531, section 2).

    Args:
        student_logits: finite floats, ``[..., classes]``.
        teacher_logits: same shape; receives no gradient.
        temperature: above 0, no unit; 1 leaves both distributions as they are.

    Returns:
        Nats, float32, ``[...]``; at least 0, and 0 where both logits agree.
    """
    student, teacher = _log_softmax(student_logits, temperature), _log_softmax(teacher_logits.detach(), temperature)
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(student || teacher) at each position, times ``temperature**2``.

    It asks the student for what the teacher finds likely and forgives what the student leaves out (arXiv:2306.08543,
    section 2.1). Arguments and result are those of ``forward_kl``.
    """
    student, teacher = _log_softmax(student_logits, temperature), _log_softmax(teacher_logits.detach(), temperature)
    return temperature**2 * F.kl_div(teacher, student, reduction="none", log_target=True).sum(dim=-1)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return F.log_softmax(logits.float() / temperature, dim=-1)


LOSSES: Mapping[str, Loss] = {"forward_kl": Loss(forward_kl), "reverse_kl": Loss(reverse_kl)}
