"""How much a unit's activation tells about the label."""

import torch
from torch import Tensor

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.sums import Stats

_MOST_BINS = 8
_SAMPLES_A_CELL = 5


def mutual_information(stats: Stats) -> Tensor:
    """Mutual information of each unit's mean activation with the label, in nats, float32 ``[units]``.

    Activations fall into bins of equally many samples, 2 to 8 of them, so that a cell of bin and class expects at least 5
    samples where there are enough; equal activations fall into one bin. The estimate is the plug-in one with Miller and
    Madow's correction of each entropy, (m - 1) / 2N for m non-empty cells (Paninski 2003, "Estimation of entropy and mutual
    information", Neural Computation 15). It is about 0 on average for independent variables and can be a little below.

    Args:
        stats: ``unit_samples`` ``[samples, units]``, finite, and ``labels`` ``[samples]``.

    Raises:
        RecipeError: all labels are one class.
    """
    samples, labels = stats["unit_samples"], stats["labels"]
    classes, codes = torch.unique(labels, return_inverse=True)
    count, width = len(labels), len(classes)
    if width < 2:
        raise RecipeError(f"mutual_information: {count} samples of one class tell nothing; pass samples of several classes.")
    bins = min(max(count // (_SAMPLES_A_CELL * width), 2), _MOST_BINS)
    cells = _binned(samples.float(), bins) * width + codes.to(samples.device).unsqueeze(1)
    joint = torch.zeros(samples.shape[1], bins * width, dtype=torch.float64, device=samples.device)
    joint.scatter_add_(1, cells.T, torch.ones_like(cells.T, dtype=torch.float64))
    table = joint.view(-1, bins, width)
    return (_entropy(table.sum(dim=2)) + _entropy(table.sum(dim=1)) - _entropy(joint)).float()


def _binned(values: Tensor, bins: int) -> Tensor:
    """The bin of each value in its column, by the mean rank of all values equal to it, so that no tie is torn apart."""
    columns = values.T.contiguous()
    ordered = columns.sort(dim=1).values
    below = torch.searchsorted(ordered, columns)
    up_to = torch.searchsorted(ordered, columns, right=True)
    return ((below + up_to) * bins // (2 * len(values))).T


def _entropy(counts: Tensor) -> Tensor:
    """Entropy in nats of each row of counts, with Miller and Madow's correction."""
    total = counts.sum(dim=1, keepdim=True)
    share = counts / total
    occupied = (counts > 0).sum(dim=1)
    return -torch.xlogy(share, share).sum(dim=1) + (occupied - 1) / (2 * total.squeeze(1))
