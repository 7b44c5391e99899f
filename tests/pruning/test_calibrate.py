"""Calibration batches that torch would fail on in its own words, or that say nothing at all."""

import pytest
import torch

from hf_shrink.errors import MismatchError, NonFiniteError, RecipeError
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.oneshot import prune
from tests.tiny import tiny_causal_lm, tiny_classifier, tiny_inputs

FISHER = PruningConfig(structure="ffn", criterion="fisher", sparsity=0.5)


def labelled(value):
    return tiny_inputs("gpt2") | {"labels": torch.full((2, 5), value)}


def test_labels_of_which_none_counts_are_refused():
    """Every score is 0 then, and the first half of the neurons leaves: by their numbers, not by what they are worth."""
    with pytest.raises(RecipeError, match="no label counts in 2 batches, all are -100"):
        prune(tiny_causal_lm("gpt2"), FISHER, [labelled(-100), labelled(-100)])
    with pytest.raises(NonFiniteError, match="calibration batch 0: its loss is nan"):
        first = labelled(-100)
        first["labels"][:, 0] = 5  # of a row's first token nothing is predicted
        prune(tiny_causal_lm("gpt2"), FISHER, [first])


def test_a_batch_without_a_label_that_counts_changes_no_score():
    """Its loss is 0 / 0: one such batch among many must neither stop an hour's work nor decide anything."""
    model = tiny_causal_lm("gpt2")
    one, other = (prune(model, FISHER, batches) for batches in ([labelled(7)], [labelled(-100), labelled(7)]))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
