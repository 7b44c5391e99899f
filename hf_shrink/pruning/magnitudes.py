"""Criteria that look at the weight alone, or at nothing."""

import torch
from torch import Tensor

from hf_shrink.pruning.sums import Stats


def magnitude(weight: Tensor, stats: Stats) -> Tensor:
    """``|W|``, float32: small weights change the output least when the inputs are of one size."""
    return weight.detach().float().abs()


def squared_magnitude(weight: Tensor, stats: Stats) -> Tensor:
    """``W`` squared, float32; the root of its sum over a unit is the L2 norm of the unit's weights."""
    return weight.detach().float().square()


def random(weight: Tensor, stats: Stats) -> Tensor:
    """Uniform in ``[0, 1)``, float32, drawn on the CPU from ``key``: the same in every process, step and resumed run."""
    generator = torch.Generator().manual_seed(int(stats["key"]))
    return torch.rand(weight.shape, generator=generator).to(weight.device)
