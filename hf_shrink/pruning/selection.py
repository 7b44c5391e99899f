"""Which entries of one mask stay, from their scores: by count, pattern or threshold."""

import torch
from torch import Tensor

from hf_shrink.pruning.masks import keep_top, removed_count
from hf_shrink.pruning.patterns import keep_n_of_m
from hf_shrink.pruning.pieces import Group


def next_mask(group: Group, scores: Tensor, sparsity: float | None, keep: Tensor | None = None) -> Tensor:
    """Mask (True = keep) of ``group`` at ``sparsity``.

    Args:
        group: whose weights are there, if its threshold counts in standard deviations.
        scores: finite, of the mask's shape.
        sparsity: fraction that is gone by now; None where a threshold decides.
        keep: an earlier mask; what it removed stays removed and counts. None: nothing is.
    """
    config = group.config
    if config.threshold is not None:
        limit = config.threshold
        if config.threshold_in == "std":
            limit *= float(group.weights[0].weight.detach().float().std())
        gone = torch.zeros_like(scores, dtype=torch.bool) if keep is None else ~keep
        low = int((scores < limit).logical_or(gone).count_nonzero())
        return keep_top(scores.masked_fill(gone, -torch.inf), min(low, scores.numel() - 1), keep=None)
    assert sparsity is not None
    if config.pattern is not None:
        n, m = config.pattern
        assert group.sparsity is not None
        return keep_n_of_m(scores, m - round((m - n) * sparsity / group.sparsity), m, keep=keep)
    return keep_top(scores, removed_count(sparsity, group.shape.numel()), keep=keep)
