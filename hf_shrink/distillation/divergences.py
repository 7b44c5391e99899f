"""Losses on logits: pure functions, float32 inside, one number a position, no gradient for the teacher.

Arguments, where nothing else is said: ``student_logits`` and ``teacher_logits`` are finite floats ``[..., classes]`` of one
shape; ``temperature`` is above 0, has no unit, and at 1 leaves both distributions as they are. Results are float32 ``[...]``,
at least 0. The factor ``temperature**2`` keeps gradients of the same size when the temperature changes (arXiv:1503.02531,
section 2).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def forward_kl(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) at each position, times ``temperature**2``, in nats; 0 where both agree (arXiv:1503.02531)."""
    student, teacher = _log_softmaxes(student_logits, teacher_logits, temperature)
    return temperature**2 * _kl(teacher, student)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(student || teacher) at each position, times ``temperature**2``, in nats; 0 where both agree.

    It asks the student for what the teacher finds likely and forgives what the student leaves out (arXiv:2306.08543,
    section 2.1).
    """
    student, teacher = _log_softmaxes(student_logits, teacher_logits, temperature)
    return temperature**2 * _kl(student, teacher)


def symmetric_kl(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The mean of ``forward_kl`` and ``reverse_kl`` (half of Jeffreys' divergence), in nats; 0 where both agree."""
    student, teacher = _log_softmaxes(student_logits, teacher_logits, temperature)
    return temperature**2 * 0.5 * (_kl(teacher, student) + _kl(student, teacher))


def jsd(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, beta: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence, times ``temperature**2``, in nats; 0 where both agree.

    ``beta * KL(teacher || mix) + (1 - beta) * KL(student || mix)`` with ``mix = beta * teacher + (1 - beta) * student``
    (arXiv:2306.13649, equation 1). Divided by beta it nears ``forward_kl`` as beta nears 0, divided by 1 - beta it nears
    ``reverse_kl`` as beta nears 1.

    Args:
        beta: in (0, 1).
    """
    student, teacher = _log_softmaxes(student_logits, teacher_logits, temperature)
    mix = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return temperature**2 * (beta * _kl(teacher, mix) + (1 - beta) * _kl(student, mix))


def total_variation(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Half the sum of absolute differences of the probabilities, times ``temperature``, from 0 (equal) to ``temperature``.

    As a loss on sequences: arXiv:2307.15190. Its gradient is bounded whatever the teacher says; one factor ``temperature`` is
    enough to keep the gradient's size, because the loss grows with the difference and not with its square.
    """
    student, teacher = _log_softmaxes(student_logits, teacher_logits, temperature)
    return temperature * 0.5 * (student.exp() - teacher.exp()).abs().sum(dim=-1)


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of the student under the teacher's probabilities, times ``temperature**2``, in nats.

    The gradient is that of ``forward_kl``; the value is larger by the teacher's entropy, which is the least it can be.
    """
    student, teacher = _log_softmaxes(student_logits, teacher_logits, temperature)
    return -(temperature**2) * (teacher.exp() * student).sum(dim=-1)


def logit_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean over the outputs of the squared difference, in squared logits; 0 where both agree (arXiv:2105.08919).

    For outputs that are values, as a regression's, it is the mean squared error to the teacher.
    """
    return (student_logits.float() - teacher_logits.detach().float()).square().mean(dim=-1)


def binary_kl(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """For labels that do not exclude each other: KL(teacher || student) of each label's sigmoid, their mean, in nats.

    Times ``temperature**2``; 0 where both agree. The gradient is that of the binary cross-entropy with the teacher's
    probabilities as targets.
    """
    student, teacher = student_logits.float() / temperature, teacher_logits.detach().float() / temperature
    yes = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    no = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return temperature**2 * (yes + no).mean(dim=-1)


def decoupled_kd(
    student_logits: Tensor, teacher_logits: Tensor, *, labels: Tensor, temperature: float = 1.0, beta: float = 8.0
) -> Tensor:
    """Decoupled distillation, times ``temperature**2``, in nats; 0 where both agree (arXiv:2203.08679, equation 7).

    The KL of "the label or not" plus ``beta`` times the KL over the other classes alone. In ``forward_kl`` the second part is
    weighted by what the teacher leaves to the other classes, which is nothing where the teacher is sure.

    Args:
        labels: the right class of each position, integers ``[...]``.
        beta: at least 0, no unit; the paper's weight of the other classes.
    """
    student, teacher = _log_softmaxes(student_logits, teacher_logits, temperature)
    right = F.one_hot(labels, student.shape[-1]).bool()
    parts = [(p[right].view(labels.shape), p.masked_fill(right, -torch.inf).logsumexp(dim=-1)) for p in (student, teacher)]
    target = torch.stack([t.exp() * (t - s) for s, t in zip(*parts, strict=True)]).sum(dim=0)
    others = (p.masked_select(~right).view(*labels.shape, -1).log_softmax(dim=-1) for p in (teacher, student))
    return temperature**2 * (target + beta * _kl(*others))


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities, over the last dimension."""
    return F.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)


def _log_softmaxes(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    one, other = (F.log_softmax(logits.float() / temperature, dim=-1) for logits in (student, teacher.detach()))
    return one, other
