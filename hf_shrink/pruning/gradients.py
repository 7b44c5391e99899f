"""Criteria that read gradients: how the loss changes where a weight, or a gate on a unit, goes to zero."""

import torch
from torch import Tensor

from hf_shrink.pruning.sums import Stats


def movement(weight: Tensor, stats: Stats) -> Tensor:
    """Sum over optimizer steps of ``-w * dL/dw``: high where training moves the weight away from zero (arXiv:2005.07683)."""
    return stats["movement"].float().clone()


def soft_movement(weight: Tensor, stats: Stats) -> Tensor:
    """Sigmoid of the movement score, in ``[0, 1]``, to be cut at a threshold (arXiv:2005.07683)."""
    return torch.sigmoid(stats["movement"].float())


def taylor(weight: Tensor, stats: Stats) -> Tensor:
    """Mean over batches of ``(w * dL/dw)`` squared: the squared change of the loss to first order (arXiv:1906.10771)."""
    return stats["taylor"].float().clone()


def taylor_of_units(stats: Stats) -> Tensor:
    """Mean over samples of the absolute gradient of a gate on the unit (arXiv:1905.10650), ``[units]``."""
    return stats["unit_taylor"].float().clone()


def snip(weight: Tensor, stats: Stats) -> Tensor:
    """``|w * mean dL/dw|``: connection sensitivity (arXiv:1810.02340), not divided by its sum over the network."""
    return (weight.detach().float() * stats["gradient"]).abs()


def fisher(weight: Tensor, stats: Stats) -> Tensor:
    """``w^2 * mean g^2 / 2``: the rise of the loss to second order with the diagonal Fisher as Hessian (arXiv:1801.05787).

    g is the gradient of a batch, so the mean of its square is the Fisher information of one sample only where a batch is one.
    """
    return weight.detach().float().square() * stats["squared_gradient"] / 2


def fisher_of_units(stats: Stats) -> Tensor:
    """The diagonal Fisher information of a mask variable on the unit (arXiv:2204.09656), ``[units]``."""
    return stats["unit_fisher"].float().clone()
