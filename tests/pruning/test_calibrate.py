"""Calibration batches that torch would fail on in its own words, or that say nothing at all."""

import pytest
import torch

from hf_shrink.errors import MismatchError, NonFiniteError, RecipeError
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.oneshot import prune
from hf_shrink.samples import plain
from tests.tiny import tiny_causal_lm, tiny_classifier, tiny_inputs, tiny_tokenizer

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


@pytest.mark.parametrize(
    ("model", "batch", "says"),
    [
        (tiny_classifier, tiny_inputs("bert") | {"labels": torch.tensor([-1, 0])}, "labels -1, but the model has 3, 0 to 2"),
        (tiny_causal_lm, labelled(25), "labels 25, but the model has 20, 0 to 19"),
        (tiny_classifier, {"input_ids": torch.tensor([[5, -1]])}, "input_ids -1, but the model has 20"),
        (tiny_classifier, {"input_ids": torch.ones(2, 100, dtype=torch.long)}, "100 tokens, but the model has 64 positions"),
        (tiny_causal_lm, {"input_ids": torch.ones(2, 100, dtype=torch.long)}, "100 tokens, but the model has 64 positions"),
    ],
    ids=["label below 0", "label above the words", "token below 0", "too long", "too long for a language model"],
)
def test_what_torch_would_fail_on_in_its_own_words_is_said(model, batch, says):
    """`index out of range in self` names neither the batch nor the number."""
    family = "bert" if model is tiny_classifier else "gpt2"
    with pytest.raises(MismatchError, match=f"calibration batch 0: .*{says}"):
        prune(model(family), FISHER, [batch])


def test_a_family_without_a_table_of_positions_takes_longer_texts():
    batch = {"input_ids": torch.full((2, 100), 5)}
    prune(tiny_classifier("llama"), PruningConfig(structure="ffn", criterion="activation_norm", sparsity=0.5), [batch])


def test_lines_of_a_text_file_are_cut_to_the_positions_of_the_model(tmp_path):
    (tmp_path / "lines.txt").write_text("red house " * 100)
    (batch,) = plain(tmp_path / "lines.txt", tiny_tokenizer(), tiny_classifier("bert"))
    assert batch["input_ids"].shape == (1, 64)
