"""Masks with a pattern: exact in every group, nested, ties by index, and refused where they do not fit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_shrink.errors import RecipeError
from hf_shrink.pruning.patterns import keep_n_of_m, keep_top_of_rows


@st.composite
def tied_groups(draw) -> tuple[Tensor, int, int]:
    """Scores ``[out, in]`` of a few levels only, and n of m that fit."""
    m = draw(st.integers(1, 8))
    rows, groups = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    size = rows * groups * m
    levels = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=size, max_size=size))
    return torch.tensor(levels).reshape(rows, groups * m), draw(st.integers(0, m)), m


def n_of_m_by_sorting(scores: Tensor, n: int, m: int) -> Tensor:
    """The second implementation: every group sorted in Python."""
    rows = []
    for row in scores.tolist():
        kept: list[bool] = []
        for start in range(0, len(row), m):
            group = row[start : start + m]
            gone = sorted(range(m), key=lambda i: (group[i], i))[: m - n]
            kept += [i not in gone for i in range(m)]
        rows.append(kept)
    return torch.tensor(rows)


@given(tied_groups())
def test_every_group_keeps_exactly_n_and_the_first_of_equal_scores_go(case):
    """A group with one weight more is refused by sparse kernels, and a whole file with it."""
    scores, n, m = case
    mask = keep_n_of_m(scores, n, m)
    assert mask.shape == scores.shape and mask.dtype == torch.bool
    assert bool((mask.reshape(-1, m).sum(dim=1) == n).all())
    assert torch.equal(mask, n_of_m_by_sorting(scores, n, m))


@given(tied_groups(), st.randoms(use_true_random=False))
def test_patterns_are_nested_as_less_is_kept_whatever_the_scores_become(case, random):
    """A schedule goes from m of m to n of m: a weight that comes back was trained as zero."""
    scores, last, m = case
    keep = None
    for n in range(m, last - 1, -1):
        values = scores.flatten().tolist()
        random.shuffle(values)
        mask = keep_n_of_m(torch.tensor(values).reshape(scores.shape), n, m, keep=keep)
        assert bool((mask.reshape(-1, m).sum(dim=1) == n).all())
        assert keep is None or not bool((mask & ~keep).any())
        keep = mask
    assert torch.equal(keep_n_of_m(scores, m, m, keep=keep), keep), "what is gone stays gone, even where more is allowed"


def test_pattern_follows_the_logical_order_of_a_transposed_view():
    """GPT-2 stores its weights transposed: groups of outputs instead of inputs would satisfy no kernel."""
    stored = torch.rand(8, 3)
    assert torch.equal(keep_n_of_m(stored.T, 2, 4), n_of_m_by_sorting(stored.T.contiguous(), 2, 4))


@pytest.mark.parametrize(
    ("n", "m", "message"),
    [(2, 4, r"h\.0\.mlp \[3, 6\]: 6 inputs are not a multiple of 4"), (3, 2, r"h\.0\.mlp: pattern \[3, 2\] cannot be")],
)
def test_a_pattern_that_does_not_fit_names_layer_and_shape(n, m, message):
    """A group that wraps into the next row would look like a pattern and be none."""
    with pytest.raises(RecipeError, match=message):
        keep_n_of_m(torch.rand(3, 6), n, m, name="h.0.mlp")


@given(tied_groups(), st.floats(0, 1))
def test_rows_lose_the_same_and_the_whole_its_exact_count(case, sparsity):
    """Rounded row by row, 0.35 of ten entries would remove 40 percent of the layer."""
    scores, _, _ = case
    mask = keep_top_of_rows(scores, sparsity)
    gone = (~mask).sum(dim=1)
    assert int(gone.sum()) == round(sparsity * scores.numel())
    assert int(gone.max() - gone.min()) <= 1
    for row, kept, count in zip(scores.tolist(), mask.tolist(), gone.tolist(), strict=True):
        lowest = sorted(range(len(row)), key=lambda i, row=row: (row[i], i))[:count]
        assert [i for i, keep in enumerate(kept) if not keep] == sorted(lowest)
