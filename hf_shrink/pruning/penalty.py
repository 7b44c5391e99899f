"""Terms of a training loss that drive what is going to be removed towards zero."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_shrink.pruning.pieces import Group, Piece


def penalty(groups: Sequence[Group]) -> Tensor:
    """The sum of ``weight * term`` over the groups whose entry has a penalty; a float32 scalar with a gradient.

    ``l1``: the sum of ``|w|`` (arXiv:1506.02626 trains with it before it prunes). ``group_lasso``: the sum over units or
    blocks of ``sqrt(n) * ||w||``, with ``n`` numbers in all that leaves with one, biases too (arXiv:1608.03665, eq. 1). Its
    gradient at a unit that is zero already is zero.
    """
    terms = [_term(group) * group.config.penalty.weight for group in groups if group.config.penalty is not None]
    return torch.stack(terms).sum()


def _term(group: Group) -> Tensor:
    assert group.config.penalty is not None
    if group.config.penalty.kind == "l1":
        return torch.stack([piece.parameter.float().abs().sum() for piece in group.pieces]).sum()
    norms = torch.stack([torch.linalg.vector_norm(_by_unit(group, piece), dim=0) for piece in group.pieces])
    numbers = sum(piece.parameter.numel() for piece in group.pieces) / group.shape.numel()
    total: Tensor = numbers**0.5 * torch.linalg.vector_norm(norms, dim=0).sum()
    return total


def _by_unit(group: Group, piece: Piece) -> Tensor:
    """The numbers of each unit in one column: ``[numbers, units]``."""
    if piece.axis == "entry":
        (high, wide), (rows, columns) = piece.block, group.shape
        blocks = piece.weight.float().view(rows, high, columns, wide)
        return blocks.permute(1, 3, 0, 2).reshape(high * wide, rows * columns)
    along = piece.parameter.float().movedim(piece.dim, 0)
    units = group.shape.numel()
    return along.reshape(piece.blocks, units, -1).movedim(1, -1).reshape(-1, units)
