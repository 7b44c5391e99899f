"""Fit the weights that stay to the inputs once more, all of them together, after pruning has gone from input to input."""

import torch
from torch import Tensor

STEPS = 6
"""Steps of conjugate gradients: where the error hardly falls any more, at the price of a few more passes."""


def refit(weight: Tensor, mask: Tensor, whole: Tensor, hessian: Tensor, *, steps: int) -> None:
    """Move the kept entries of ``weight``, in place, so that its outputs come nearer to those of ``whole``.

    Lowers ``(w - w0)' H (w - w0)`` of each row over the entries that its mask keeps, by conjugate gradients with the diagonal
    of ``H`` as preconditioner (arXiv:2406.07831, section 3.3). No step raises it, as far as float32 goes.

    Args:
        weight: pruned, float32 ``[out, in]``; stays zero where the mask is False.
        mask: True = keep, ``[out, in]``.
        whole: before pruning, float32 ``[out, in]``.
        hessian: ``X'X`` of the inputs, damped, float32 ``[in, in]``, positive definite.
        steps: at least 1.
    """
    diagonal = hessian.diagonal()
    residual = ((whole - weight) @ hessian).mul_(mask)
    direction = torch.zeros_like(residual)
    before = torch.ones_like(residual[:, :1])
    for _ in range(steps):
        size = (residual.square() @ diagonal.reciprocal())[:, None]
        direction.mul_(size / before).addcdiv_(residual, diagonal)
        reach = (direction @ hessian).mul_(mask)
        curve = (direction * reach).sum(dim=1, keepdim=True)
        step = torch.where(curve > 0, size / curve, 0.0)  # a row that fits already has no direction left
        weight.addcmul_(step, direction)
        residual.addcmul_(step, reach, value=-1)
        before = torch.where(size > 0, size, 1.0)
