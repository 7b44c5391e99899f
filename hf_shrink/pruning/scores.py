"""What the entries of one mask are worth: a criterion's scores of weights, added up for each neuron, head or block."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.criteria import Criterion, Stats, as_criterion
from hf_shrink.pruning.pieces import Group, Piece
from hf_shrink.pruning.statistics import Watched
from hf_shrink.targets import Projection


def criterion_of(group: Group) -> Criterion:
    """The criterion of the group's entry."""
    return as_criterion(group.config.criterion)


def scores_of(group: Group, stats: Mapping[str, Stats]) -> Tensor:
    """Scores of the mask's shape, high = keep; float64 for sums, so that rounding does not decide between units.

    A unit's score is the criterion's own, where it has one for units, else the sum (or norm) over the entries of the rows and
    columns that leave with it. Biases leave with their unit but are not scored: a criterion compares weights.

    Args:
        group: what is scored.
        stats: what the criterion needs, by the names in ``watched_of``.
    """
    criterion = criterion_of(group)
    if group.weights[0].axis == "entry":
        (piece,) = group.weights
        return _blocks(_entries(criterion, group, piece, stats), piece.block)
    if criterion.unit is not None:
        found = [_of_units(criterion.unit(stats.get(name, {})), group) for name, _ in _readers(group)]
        return torch.stack(found).sum(dim=0)
    total = torch.zeros(group.shape, dtype=torch.float64, device=group.weights[0].parameter.device)
    for piece in group.weights:
        scores = _entries(criterion, group, piece, stats).double()
        along = scores.sum(dim=1 if piece.axis == "output" else 0)
        total += along.view(piece.blocks, -1, piece.inner).sum(dim=(0, 2))
    return total.sqrt() if criterion.combine == "norm" else total


def watched_of(group: Group) -> tuple[Watched, ...]:
    """What has to be recorded before ``scores_of`` can be called for ``group``."""
    criterion, seed = criterion_of(group), group.config.seed or 0
    is_units = group.weights[0].axis != "entry"
    if is_units and criterion.unit is not None:
        if not criterion.unit_needs:
            return ()
        return tuple(
            Watched(name, _projection(piece), criterion.unit_needs, (piece.blocks, group.shape.numel(), piece.inner), seed)
            for name, piece in _readers(group)
        )
    if not criterion.needs:
        return ()
    return tuple(Watched(piece.name, _projection(piece), criterion.needs, seed=seed) for piece in group.weights)


def _readers(group: Group) -> list[tuple[str, Piece]]:
    """What reads the units, by the name of its statistics: several projections where a head is the same one in all layers."""
    readers = [piece for piece in group.weights if piece.axis == "input"]
    return [(group.name if len(readers) == 1 else piece.name, piece) for piece in readers]


def _of_units(scores: Tensor, group: Group) -> Tensor:
    if not isinstance(scores, Tensor) or scores.shape != group.shape:
        came = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise RecipeError(f"{group.entry}.criterion: unit scores {came} for {list(group.shape)} units; return one a unit.")
    return scores.detach().float()


def _projection(piece: Piece) -> Projection:
    assert not isinstance(piece.module, nn.Embedding), "tables have no criterion of their own"
    return piece.module


def _entries(criterion: Criterion, group: Group, piece: Piece, stats: Mapping[str, Stats]) -> Tensor:
    if criterion.function is None:
        raise RecipeError(
            f"{group.entry}.criterion: {group.config.criterion} scores whole neurons or heads, not single weights; "
            "use structure: ffn or heads, or another criterion."
        )
    return criterion.function(piece.weight, stats.get(piece.name, {}))


def _blocks(scores: Tensor, block: tuple[int, int]) -> Tensor:
    """The mean score of each block; the scores themselves where a block is one weight."""
    if block == (1, 1):
        return scores
    high, wide = block
    rows, columns = scores.shape
    return scores.double().view(rows // high, high, columns // wide, wide).mean(dim=(1, 3))
