"""Which positions count, worked out by hand."""

import pytest
import torch

from hf_shrink.distillation.positions import kept_positions
from hf_shrink.errors import MismatchError


def test_a_causal_model_counts_positions_whose_next_token_is_real_and_labelled():
    """One position too many teaches padding; one too few never teaches the first or the last word."""
    batch = {
        "labels": torch.tensor([[5, 6, 7, 8], [5, 6, -100, -100], [5, -100, 7, 8], [9, 9, 5, 6]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]]),
    }
    expected = [[1, 1, 1, 0], [1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0]]
    assert kept_positions(batch, shifts_labels=True).int().tolist() == expected


def test_padding_does_not_count_even_where_it_has_a_label():
    """A collator that copies input_ids into labels labels the padding, too."""
    batch = {"labels": torch.tensor([[5, 6, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 0, 0]])}
    assert kept_positions(batch, shifts_labels=True).int().tolist() == [[1, 0, 0, 0]]
    assert kept_positions(batch, shifts_labels=False).int().tolist() == [[1, 1, 0, 0]]


def test_a_classifier_counts_rows_with_a_label():
    """An unlabelled row is not a row of class 0."""
    batch = {"labels": torch.tensor([2, -100, 0]), "attention_mask": torch.ones(3, 7)}
    assert kept_positions(batch, shifts_labels=False).tolist() == [True, False, True]


def test_labels_shifted_by_the_collator_are_not_shifted_again():
    """Padding-free collators do the shift themselves."""
    batch = {"labels": torch.tensor([[5, 6, 7]]), "shift_labels": torch.tensor([[6, 7, -100]])}
    assert kept_positions(batch, shifts_labels=True).tolist() == [[True, True, False]]


def test_a_batch_without_labels_is_refused():
    """Counting every position would let padding in."""
    with pytest.raises(MismatchError, match="without 'labels'"):
        kept_positions({"input_ids": torch.ones(2, 3)}, shifts_labels=False)


def test_the_labels_of_the_batch_stay_as_they_were():
    """The task loss reads the same tensor afterwards."""
    labels = torch.tensor([[5, 6, 7]])
    kept_positions({"labels": labels}, shifts_labels=True)
    assert labels.tolist() == [[5, 6, 7]]
