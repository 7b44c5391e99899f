"""Masks that compete: counts by hand, by brute force and by law."""

import itertools

import pytest
import torch

from hf_shrink.pruning.allocation import removed_in_each


def keeps(*sizes: int) -> list[torch.Tensor]:
    return [torch.ones(size, dtype=torch.bool) for size in sizes]


def test_the_lowest_scores_go_wherever_they_are():
    """By hand: of 1 2 3 4 and 5 0.5 0.6 0.7 the four lowest are 0.5, 0.6, 0.7 and 1."""
    scores = [torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([5.0, 0.5, 0.6, 0.7])]
    assert removed_in_each(scores, keeps(4, 4), 4, [1, 1]) == [1, 3]


def test_no_mask_loses_everything():
    """A layer whose scores are all low would be left without a single unit."""
    scores = [torch.tensor([1e-9, 1e-8, 1e-7]), torch.tensor([10.0, 11.0, 12.0])]
    assert removed_in_each(scores, keeps(3, 3), 4, [1, 1]) == [2, 2]
    assert removed_in_each(scores, keeps(3, 3), 99, [1, 1]) == [2, 2]


def test_what_is_gone_counts_and_stays_gone():
    scores = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 0.2, 0.3])]
    masks = [torch.tensor([True, True, False]), torch.ones(3, dtype=torch.bool)]
    assert removed_in_each(scores, masks, 2, [1, 1]) == [1, 1]
    assert removed_in_each(scores, masks, 0, [1, 1]) == [1, 0]


def test_bundles_leave_together():
    """By hand: pairs of 1..6 score 1.5, 3.5 (5.5 must stay); of 10 2 2 8: 2 (9 must stay). Four of ten go: 1.5 and 2."""
    scores = [torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0]), torch.tensor([10.0, 2.0, 2.0, 8.0])]
    assert removed_in_each(scores, keeps(6, 4), 4, [2, 2]) == [2, 2]
    assert removed_in_each(scores, keeps(6, 4), 6, [2, 2]) == [4, 2]


def test_what_is_above_a_multiple_leaves_first():
    """Seven units in multiples of four: three leave, and four stay."""
    assert removed_in_each([torch.arange(7.0)], keeps(7), 6, [4]) == [3]


@pytest.mark.parametrize("seed", range(20))
def test_no_other_split_removes_less(seed):
    """Brute force over every split of the same total."""
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(5, generator=generator) for _ in range(3)]
    total = 1 + seed % 11
    counts = removed_in_each(scores, keeps(5, 5, 5), total, [1, 1, 1])
    assert sum(counts) == total and max(counts) <= 4
    ordered = [score.sort().values for score in scores]

    def cost(split: tuple[int, ...]) -> float:
        return sum(float(values[:n].sum()) for values, n in zip(ordered, split, strict=True))

    best = min(cost(split) for split in itertools.product(range(5), repeat=3) if sum(split) == total)
    assert cost(tuple(counts)) == pytest.approx(best)
