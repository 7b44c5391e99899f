"""Losses on attention: pure functions, float32 inside, one number a query position, no gradient for the teacher.

Each gets log-probabilities over the keys, ``[..., heads, keys]``, of student and teacher, the same shape; a key that must
not be seen has probability 0 in both. Results are float32 ``[...]``, the mean over the heads, at least 0 and 0 where both
agree.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) over the keys, in nats, mean over the heads (arXiv:2002.10957, equation 1)."""
    student, teacher = student.float(), teacher.detach().float()
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1).mean(dim=-1)


def attention_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum over the keys of the squared difference of the probabilities, mean over the heads.

    arXiv:1909.10351 (equation 7) compares the scores before the softmax; probabilities stay finite where keys are masked.
    """
    return (student.float().exp() - teacher.detach().float().exp()).square().sum(dim=-1).mean(dim=-1)


def relation(heads: Tensor, mask: Tensor | None, *, groups: int) -> Tensor:
    """How each position relates to the others: log softmax of scaled dot products among queries, keys or values.

    Heads are joined and cut again into ``groups``, so that models of different head counts compare (arXiv:2012.15828,
    section 3.1).

    Args:
        heads: ``[batch, heads, length, head_dim]``; ``groups`` divides heads x head_dim.
        mask: added to the scores, ``[batch or 1, 1, length, length]``: very negative where a key must not be seen.

    Returns:
        ``[batch, length, groups, length]``, float32.
    """
    batch, _, length, _ = heads.shape
    wide = heads.float().transpose(1, 2).reshape(batch, length, groups, -1).transpose(1, 2)
    scores = wide @ wide.transpose(-1, -2) / wide.shape[-1] ** 0.5
    scores = scores if mask is None else torch.maximum(scores + mask.float(), scores.new_tensor(torch.finfo(scores.dtype).min))
    return scores.log_softmax(dim=-1).transpose(1, 2)
