"""Losses on hidden states: pure functions, float32 inside, one number a position, no gradient for the teacher.

``student`` and ``teacher`` are floats ``[..., width]`` of one shape, the student's after its projection where widths differ.
Results are float32 ``[...]``, at least 0, and 0 where both agree.
"""

import torch.nn.functional as F
from torch import Tensor


def hidden_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the width of the squared difference (arXiv:1909.10351, equations 8 and 9)."""
    return (student.float() - teacher.detach().float()).square().mean(dim=-1)


def hidden_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - the cosine of the angle between both, from 0 (same direction) to 2 (arXiv:1910.01108, section 3)."""
    return 0.5 * normalised_mse(student, teacher)


def normalised_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of both scaled to length 1, from 0 to 4: patient distillation (arXiv:1908.09355, equation 7)."""
    ours, theirs = (F.normalize(x.float(), dim=-1, eps=1e-6) for x in (student, teacher.detach()))
    return (ours - theirs).square().sum(dim=-1)
