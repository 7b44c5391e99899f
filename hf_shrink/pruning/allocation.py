"""How much each of several masks loses when their units compete."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hf_shrink.pruning.masks import keep_top


def removed_in_each(scores: Sequence[Tensor], keeps: Sequence[Tensor], removed: int, multiples: Sequence[int]) -> list[int]:
    """How many entries each mask is without when ``removed`` in all are gone, the lowest scores first.

    What is gone stays gone and counts. Every mask keeps at least its multiple. Where multiples are above 1 the units of a mask
    leave in bundles of that many, lowest first, so that what stays is a multiple; a bundle counts with its mean score.

    Args:
        scores: finite, one tensor a mask, comparable with each other.
        keeps: the masks in force (True = keep), of the same shapes.
        removed: in all masks together, those already gone included. Less where bundles do not fit it.
        multiples: of kept units, one a mask.
    """
    if all(multiple == 1 for multiple in multiples):
        return _single(scores, keeps, removed)
    bundles = [_bundles(score, keep, multiple) for score, keep, multiple in zip(scores, keeps, multiples, strict=True)]
    order = sorted((mean, group, index) for group, found in enumerate(bundles) for index, (mean, _) in enumerate(found))
    counts = [keep.numel() - int(keep.count_nonzero()) for keep in keeps]
    left = removed - sum(counts)
    for _, group, index in order:
        size = bundles[group][index][1]
        if size > left:
            continue
        counts[group] += size
        left -= size
    return counts


def _single(scores: Sequence[Tensor], keeps: Sequence[Tensor], removed: int) -> list[int]:
    pool = torch.cat([score.detach().double().flatten().cpu() for score in scores])
    mask = torch.cat([keep.flatten().cpu() for keep in keeps])
    begin = 0
    for score, keep in zip(scores, keeps, strict=True):  # the best of each mask cannot be reached
        best = score.detach().double().flatten().cpu().masked_fill(~keep.flatten().cpu(), -np.inf).argmax()
        pool[begin + int(best)] = np.inf
        begin += score.numel()
    kept = keep_top(pool, min(removed, pool.numel() - len(scores)), keep=mask)
    return [part.numel() - int(part.count_nonzero()) for part in torch.split(kept, [score.numel() for score in scores])]


def _bundles(scores: Tensor, keep: Tensor, multiple: int) -> list[tuple[float, int]]:
    """Mean score and size of what can leave one mask, in the order in which it would; the best ``multiple`` units cannot.

    The first bundle is what is above a multiple, where the number of units is none.
    """
    alive = np.sort(scores.detach().double().flatten().cpu().numpy()[keep.flatten().cpu().numpy()])
    rest = len(alive) % multiple
    edges = ([0, rest] if rest else [0]) + list(range(rest + multiple, len(alive) - multiple + 1, multiple))
    return [(float(alive[low:high].mean()), high - low) for low, high in itertools.pairwise(edges)]
