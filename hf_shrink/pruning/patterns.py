"""Masks with a pattern: n of every m neighbouring inputs, or the same number in every row."""

import numpy as np
import torch
from torch import Tensor

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.masks import removed_count


def keep_n_of_m(scores: Tensor, n: int, m: int, *, keep: Tensor | None = None, name: str = "scores") -> Tensor:
    """Mask (True = keep) with exactly ``n`` of every ``m`` neighbouring inputs; of equal scores the first goes first.

    Args:
        scores: finite floats, ``[out, in]``, ``m`` divides ``in``.
        n: how many of a group stay, 0 to ``m``.
        m: size of a group of neighbours along the last dimension.
        keep: an earlier mask of that shape; what it removed stays removed and counts, even where that is more than ``m - n``.
        name: whose scores these are, for the error.

    Raises:
        RecipeError: ``m`` does not divide ``in``, or ``n`` is not between 0 and ``m``.
    """
    check_n_of_m(tuple(scores.shape), n, m, name=name)
    groups = scores.detach().reshape(-1, m)
    alive = None if keep is None else keep.reshape(-1, m)
    if alive is not None:
        groups = groups.masked_fill(~alive, -torch.inf)
    first_to_go = groups.argsort(dim=1, stable=True)[:, : m - n]
    mask = torch.ones_like(groups, dtype=torch.bool).scatter_(1, first_to_go, False)
    return (mask if alive is None else mask & alive).view(scores.shape)


def check_n_of_m(shape: tuple[int, ...], n: int, m: int, *, name: str) -> None:
    """Refuse, with a ``RecipeError``, a pattern that a weight ``[out, in]`` of ``shape`` cannot have."""
    if not 0 <= n <= m or m < 1:
        raise RecipeError(f"{name}: pattern [{n}, {m}] cannot be; keep n of m, from 0 to m of them, such as [2, 4].")
    if shape[-1] % m:
        raise RecipeError(
            f"{name} {list(shape)}: {shape[-1]} inputs are not a multiple of {m}, as the pattern [{n}, {m}] needs. "
            "Choose another pattern or put it in exclude_modules."
        )


def keep_top_of_rows(scores: Tensor, sparsity: float) -> Tensor:
    """Mask (True = keep) without the lowest scores of each row; of equal ones the first goes first.

    Each row loses ``sparsity`` of its entries. Where that is no whole number, rows differ by one, so that the mask as a whole
    loses exactly ``removed_count(sparsity, numel)``.

    Args:
        scores: finite float32 or float64, ``[out, in]``.
        sparsity: fraction removed, 0 to 1.
    """
    values = scores.detach().cpu().numpy()
    rows, cols = values.shape
    ends = np.array([removed_count(sparsity, cols * row) for row in range(rows + 1)])
    mask = np.ones((rows, cols), dtype=bool)
    counts = np.diff(ends)
    for count in np.unique(counts[counts > 0]):
        mine = counts == count
        mask[mine] = _without_lowest(values[mine], int(count))
    return torch.from_numpy(mask).to(scores.device)


def _without_lowest(values: np.ndarray, count: int) -> np.ndarray:
    """The mask without the ``count`` lowest of each row, 1 or more."""
    threshold = np.partition(values, count - 1, axis=1)[:, count - 1 : count]
    kept = values > threshold
    ties = values == threshold
    stay = (values.shape[1] - count) - np.count_nonzero(kept, axis=1)  # so many of the ties, the last ones
    tied = np.flatnonzero(stay)
    from_the_end = np.cumsum(ties[tied, ::-1], axis=1)[:, ::-1]
    kept[tied] |= ties[tied] & (from_the_end <= stay[tied, None])
    return kept
