"""Second-order pruning of one weight: what is removed is made up for by the weights that stay."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_shrink.errors import NonFiniteError
from hf_shrink.pruning.masks import keep_top, removed_count
from hf_shrink.pruning.patterns import check_n_of_m, keep_n_of_m
from hf_shrink.pruning.refit import refit

DAMPING = 0.01
"""Added to the diagonal of the Hessian, as a fraction of its mean: calibration data need not span every direction."""

BLOCK = 128
"""Inputs whose mask is chosen at once, after all the inputs before them have been made up for."""

_DEAD = 1e-12  # of the mean diagonal, for inputs that are always zero
_MOST_CHOICES = 100  # of weights to remove from a group, for all of them to be tried
_CHUNK = 32  # inputs whose updates reach the rest of the block in one product


def sparsegpt(
    weight: Tensor,
    hessian: Tensor,
    *,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    block: int = BLOCK,
    damping: float = DAMPING,
    refit_steps: int = 0,
    name: str = "weight",
) -> tuple[Tensor, Tensor]:
    """Prune ``weight`` so that its output on the inputs behind ``hessian`` changes little (arXiv:2301.00774, algorithm 1).

    Inputs are taken from first to last. A weight costs ``w^2 / d^2``, with ``d`` its diagonal entry of the upper Cholesky
    factor of the inverse Hessian; removing it changes the weights of the inputs after it in the same row by ``-w / d`` times
    the factor's row: the optimal brain surgeon's update when everything before is fixed. With a pattern, whole groups are
    judged and made up for at once, every choice that the pattern allows where there are at most 100; and groups are taken by
    their inputs' mean square, the largest first, so that what costs most finds all the others still free to make up for it.

    Args:
        weight: finite, ``[out, in]``; is not changed.
        hessian: ``X'X`` of the inputs ``X`` ``[tokens, in]``, times any factor; float32 ``[in, in]``; is not changed.
        sparsity: fraction removed of every block of inputs, exactly as far as whole numbers go, and of the whole weight.
        pattern: instead of ``sparsity``: ``(n, m)``, n of every m neighbouring inputs stay.
        block: inputs in a block, rounded down to a multiple of m.
        damping: see ``DAMPING``.
        refit_steps: at the end ``refit`` moves all the weights that stay, those of earlier inputs too, in so many steps.
        name: whose weight it is, for errors.

    Returns:
        The new weight, float32 ``[out, in]``, and its mask (True = keep).

    Raises:
        RecipeError: m does not divide ``in``.
        NonFiniteError: the Hessian is no matrix of products of finite inputs.
    """
    factor = factor_of(hessian, None if pattern is None else pattern[1], damping, name, refits=refit_steps > 0)
    return prune_by_factor(weight, factor, sparsity=sparsity, pattern=pattern, block=block, refit_steps=refit_steps, name=name)


@dataclass(frozen=True)
class Factor:
    """What the inputs of a projection say about pruning it.

    Attributes:
        hessian: ``X'X``, damped, of the inputs in the order in which they are taken, float32 ``[in, in]``; None: no refit.
        upper: upper triangular ``U`` with ``U'U`` its inverse, float32.
        order: which input is taken first, second, ...; ``[in]``.
    """

    hessian: Tensor | None
    upper: Tensor
    order: Tensor


def factor_of(hessian: Tensor, group: int | None, damping: float, name: str, *, refits: bool) -> Factor:
    """The factor for a pattern's groups of ``group`` inputs, those with the largest inputs first; None: as they stand.

    Inputs that are always zero say nothing: their weights cost next to nothing, so they go first; where all are zero the
    identity stands in. With the order of the inputs reversed the Hessian is ``L L'``, and ``U`` is the inverse of ``L`` in the
    first order: one factorisation, in float64 where float32 does not do, and no product of ill-conditioned matrices.
    ``refits``: whether the Hessian itself will be needed.
    """
    size, mean = len(hessian), float(hessian.diagonal().mean())
    order = torch.arange(size, device=hessian.device)
    if group is not None and size % group == 0:
        first = hessian.diagonal().reshape(-1, group).sum(dim=1).argsort(descending=True, stable=True)
        order = order.reshape(-1, group)[first].flatten()
    backwards = order.flip(0)
    damped = hessian[backwards[:, None], backwards]
    del hessian  # where the caller has let go of it, this is its end
    diagonal = damped.diagonal()
    dead = diagonal == 0
    diagonal.add_(damping * mean)
    diagonal[dead] = _DEAD * mean if mean > 0 else 1.0
    kept = damped.flip(0, 1) if refits else None
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        lower, failed = torch.linalg.cholesky_ex(damped.double())
    del damped, diagonal
    if failed or not bool(torch.isfinite(lower).all()):
        raise NonFiniteError(
            f"{name}: the Hessian of its inputs has no inverse, even damped by {damping:g} of its mean diagonal {mean:.3g}. "
            "Look at the calibration data, or raise the damping."
        )
    inverse = torch.eye(size, dtype=lower.dtype, device=lower.device)
    torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    del lower
    return Factor(kept, inverse.flip(0, 1).float(), order)


def prune_by_factor(
    weight: Tensor,
    factor: Factor,
    *,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    block: int = BLOCK,
    refit_steps: int = 0,
    name: str = "weight",
) -> tuple[Tensor, Tensor]:
    """``sparsegpt`` with the ``factor_of`` its inputs at hand, which weights that read the same inputs share."""
    assert (sparsity is None) != (pattern is None), "one of the two says how much goes"
    rows, size = weight.shape
    group = 1
    if pattern is not None:
        check_n_of_m((rows, size), *pattern, name=name)
        group = pattern[1]
    block = max(block // group, 1) * group
    whole = weight.detach().float().T[factor.order]  # one input is one contiguous row
    columns = whole.clone() if refit_steps else whole
    mask = torch.ones((size, rows), dtype=torch.bool, device=weight.device)
    for start in range(0, size, block):
        end = min(start + block, size)
        own = factor.upper[start:end, start:end]
        if sparsity is not None:
            removed = removed_count(sparsity, rows * end) - removed_count(sparsity, rows * start)
            scores = (columns[start:end] / own.diagonal()[:, None]).square().T
            mask[start:end] = keep_top(scores, removed).T
        prune_own = (
            _prune_groups if pattern is not None and math.comb(pattern[1], pattern[0]) <= _MOST_CHOICES else _prune_block
        )
        errors = prune_own(columns[start:end], mask[start:end], own, pattern)
        columns[end:].addmm_(factor.upper[start:end, end:].T, errors, alpha=-1)
    if refit_steps:
        assert factor.hessian is not None, "factor_of(..., refits=True)"
        refit(columns.T, mask.T, whole.T, factor.hessian, steps=refit_steps)
    back = factor.order.argsort()
    return columns[back].T, mask[back].T


def _prune_block(columns: Tensor, mask: Tensor, factor: Tensor, pattern: tuple[int, int] | None) -> Tensor:
    """Prune ``columns`` ``[block, out]`` in place, and fill ``mask`` where a pattern decides; what is left for later inputs."""
    n, m = pattern or (0, 1)
    size, chunk = len(columns), max(_CHUNK // m, 1) * m
    scale = factor.diagonal().tolist()
    errors = torch.zeros_like(columns)
    for start in range(0, size, chunk):
        end = min(start + chunk, size)
        for i in range(start, end):
            if pattern is not None and i % m == 0:
                scores = (columns[i : i + m] / factor.diagonal()[i : i + m, None]).square().T
                mask[i : i + m] = keep_n_of_m(scores, n, m).T
            torch.div(columns[i].masked_fill(mask[i], 0.0), scale[i], out=errors[i])
            columns[i].masked_fill_(~mask[i], 0.0)
            columns[i + 1 : end].addr_(factor[i, i + 1 : end], errors[i], alpha=-1)
        columns[end:].addmm_(factor[start:end, end:].T, errors[start:end], alpha=-1)
    return errors


def _prune_groups(columns: Tensor, mask: Tensor, factor: Tensor, pattern: tuple[int, int] | None) -> Tensor:
    """As ``_prune_block``, but the m weights of a group are judged and made up for together, not one after the other.

    With ``U`` the factor's block of the group, removing its weights ``P`` costs at least ``|e|^2``, where ``e`` is the shortest
    vector with ``U[:, P]' e = w_P``; all later weights and those of the group that stay then change by ``-U' e`` (the optimal
    brain surgeon for several weights, arXiv:2203.07259). Of all the sets that the pattern allows the cheapest goes.
    """
    assert pattern is not None
    n, m = pattern
    size, rows = columns.shape
    choices = torch.tensor(list(itertools.combinations(range(m), m - n)), device=columns.device)
    blocks = torch.stack([factor[i : i + m, i : i + m] for i in range(0, size, m)])
    solutions = torch.linalg.pinv(blocks.double()[:, :, choices].permute(0, 2, 3, 1)).to(columns.dtype)  # [group, choice, m, k]
    errors = torch.empty_like(columns)
    for i, solution in zip(range(0, size, m), solutions, strict=True):
        found = solution @ columns[i : i + m][choices]  # [choice, m, out]
        best = found.square().sum(dim=1).argmin(dim=0)
        errors[i : i + m] = found.gather(0, best.expand(1, m, rows))[0]
        mask[i : i + m].scatter_(0, choices[best].T, False)
        columns[i:].addmm_(factor[i : i + m, i:].T, errors[i : i + m], alpha=-1)
        columns[i : i + m].masked_fill_(~mask[i : i + m], 0.0)
    return errors
