"""The rounding of ONNX Runtime's quantiser, as ``int8_graph`` asks for it: what its codes and scales are worth as floats."""

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float32).tiny
"""The least scale; below it the quantiser takes 1, and so zero for every number."""
_HALF = 64
"""Codes of a product's weight go from -64 to 64: 7 of 8 bits."""
_CODES = 255
"""Codes of a table go from 0 to 255."""


@torch.no_grad()
def rounded_product(weight: Tensor) -> Tensor:
    """Code times scale: one scale an output, its largest magnitude by 64, which is exact; halves go to the even code.

    Args:
        weight: finite floats, ``[out_features, in_features]``.

    Returns:
        float32, of the same shape: what the graph's product multiplies by, bit for bit.
    """
    weight = weight.detach().float()
    if not weight.numel():
        return weight
    most = weight.abs().amax(dim=1, keepdim=True)
    scale = torch.where(most < _HALF * _TINY, torch.ones_like(most), most / _HALF)
    return (weight / scale).round() * scale


@torch.no_grad()
def rounded_table(table: Tensor) -> Tensor:
    """(Code - zero point) times scale: one pair for the whole table, from its least number, or 0, to its largest, or 0.

    Args:
        table: finite floats, ``[rows, features]``.

    Returns:
        float32, of the same shape: what the graph looks up, bit for bit.
    """
    table = table.detach().float()
    if not table.numel():
        return table
    low, high = (end.double() for end in table.aminmax())
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / torch.full_like(high, _CODES)  # a plain number would be multiplied by on a GPU, as its reciprocal
    if scale < _TINY:
        return torch.zeros_like(table)
    zero = (-low / scale).round().float()
    scale = scale.float()
    codes = ((table / scale).round() + zero).clamp(0, _CODES)
    return (codes - zero) * scale
