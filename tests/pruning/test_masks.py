"""Masks: exact counts whatever ties, nested, the same on any number of threads, and the same after packing."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_shrink.errors import IntegrityError
from hf_shrink.pruning import masks as module
from hf_shrink.pruning.masks import pack, removed_count, unpack

SHAPES = st.one_of(st.tuples(st.integers(1, 70)), st.tuples(st.integers(1, 12), st.integers(1, 12)))
FRACTIONS = st.floats(0.0, 1.0)


def keep_top(scores: torch.Tensor, sparsity: float, *, keep: torch.Tensor | None = None) -> torch.Tensor:
    """By fraction; the product counts."""
    return module.keep_top(scores, removed_count(sparsity, scores.numel()), keep=keep)


@st.composite
def tied_scores(draw) -> Tensor:
    """Scores of a few levels only, so that most of them tie."""
    shape = draw(SHAPES)
    levels = draw(st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=math.prod(shape), max_size=math.prod(shape)))
    return torch.tensor(levels).reshape(shape)


def by_sorting(scores: Tensor, sparsity: float, keep: Tensor | None = None) -> Tensor:
    """The second implementation: a stable sort, earlier removals first."""
    flat = [(keep is None or bool(keep.flatten()[i]), value, i) for i, value in enumerate(scores.flatten().tolist())]
    gone = 0 if keep is None else int((~keep).sum())
    removed = {i for _, _, i in sorted(flat)[: max(round(sparsity * len(flat)), gone)]}
    return torch.tensor([i not in removed for i in range(len(flat))]).reshape(scores.shape)


@given(tied_scores(), FRACTIONS)
def test_mask_equals_a_stable_sort_and_removes_the_exact_count(scores, sparsity):
    """``scores <= threshold`` removes every tie: 50% asked, 90% gone where weights are equal."""
    mask = keep_top(scores, sparsity)
    assert mask.shape == scores.shape and mask.dtype == torch.bool
    assert int((~mask).sum()) == round(sparsity * scores.numel()) == removed_count(sparsity, scores.numel())
    assert torch.equal(mask, by_sorting(scores, sparsity))


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.999, 1.0])
def test_mask_drops_the_exact_count_when_every_score_ties(sparsity):
    mask = keep_top(torch.ones(10, 10), sparsity)
    assert int((~mask).sum()) == round(sparsity * 100)
    assert torch.equal(mask.flatten(), torch.arange(100) >= round(sparsity * 100)), "the first of equal scores go first"


@given(tied_scores(), st.lists(FRACTIONS, min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_masks_are_nested_as_sparsity_rises_whatever_the_scores_become(scores, fractions, random):
    """A weight that comes back has been trained as zero and counts as pruned on the card."""
    keep = torch.ones_like(scores, dtype=torch.bool)
    for sparsity in sorted(fractions):
        values = scores.flatten().tolist()
        random.shuffle(values)
        scores = torch.tensor(values).reshape(scores.shape)
        mask = keep_top(scores, sparsity, keep=keep)
        assert not bool((mask & ~keep).any())
        assert int((~mask).sum()) == round(sparsity * scores.numel())
        assert torch.equal(mask, by_sorting(scores, sparsity, keep))
        keep = mask


@given(tied_scores(), FRACTIONS, FRACTIONS)
def test_selecting_again_with_less_or_the_same_changes_nothing(scores, first, second):
    """After a resume the same step is computed again: a second selection must not remove more, nor bring anything back."""
    mask = keep_top(scores, max(first, second))
    assert torch.equal(keep_top(scores.flip(0), min(first, second), keep=mask), mask)
    assert torch.equal(keep_top(scores, max(first, second), keep=mask), mask)


def test_mask_of_a_transposed_view_follows_its_logical_order():
    """GPT-2's weights are views with swapped strides: reading their storage would score one weight and remove another."""
    stored = torch.rand(7, 5).mul(4).round()
    assert torch.equal(keep_top(stored.T, 0.4), by_sorting(stored.T.contiguous(), 0.4))


@pytest.mark.parametrize("levels", [None, 16])
def test_masks_of_a_large_matrix_are_the_same_for_one_and_two_threads(levels):
    """Ranks and machines with other thread counts would prune other weights from the same checkpoint."""
    scores = torch.randn(1536, 384).abs()
    scores = scores if levels is None else (scores * levels).round()
    masks = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        first = keep_top(scores, 0.3)
        masks.append(keep_top(scores.flip(0), 0.6, keep=first))
    assert torch.equal(*masks)
    assert int((~masks[0]).sum()) == round(0.6 * scores.numel())


def test_the_earlier_mask_is_not_written_to():
    keep = torch.ones(8, dtype=torch.bool)
    keep_top(torch.arange(8.0), 0.5, keep=keep)
    assert bool(keep.all())
    same = keep_top(torch.arange(8.0), 0.0, keep=keep)
    same[0] = False
    assert bool(keep.all()), "not even where nothing is removed"


@given(SHAPES.flatmap(lambda shape: st.tuples(st.just(shape), st.integers(0, 2 ** math.prod(shape) - 1))))
def test_packed_bits_are_the_binary_number_and_unpack_to_the_same_mask(case):
    """One bit off and every mask after a resume is another one."""
    shape, number = case
    size = math.prod(shape)
    bits = f"{number:0{size}b}"
    mask = torch.tensor([bit == "1" for bit in bits]).reshape(shape)
    packed = pack(mask)
    padded = bits + "0" * (-size % 8)
    assert packed.dtype == torch.uint8 and packed.tolist() == [int(padded[i : i + 8], 2) for i in range(0, len(padded), 8)]
    assert torch.equal(unpack(packed, torch.Size(shape), name="m"), mask)


@pytest.mark.parametrize("packed", [torch.zeros(2, dtype=torch.uint8), torch.zeros(1), torch.zeros((1, 1), dtype=torch.uint8)])
def test_unpacking_another_size_or_dtype_is_an_integrity_error(packed):
    """Masks of another model would be cut to fit."""
    with pytest.raises(IntegrityError, match=r"mask encoder\.0: torch\..*expected torch\.uint8 \[1\] for \[2, 3\]"):
        unpack(packed, torch.Size([2, 3]), name="encoder.0")
