"""What a one-step command measures before it prunes: on the recipe's rows, with labels as the model counts them."""

import copy
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from hf_shrink.calibrated import _mapped, _turned, calibrated
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.pruning.config import PruningConfig
from hf_shrink.pruning.oneshot import prune
from tests.test_sensitivity import home, learned, recipe  # noqa: F401 - fixtures
from tests.tiny import COLOURS, tiny_tokenizer

ENTRY = PruningConfig(structure="ffn", sparsity=0.5, allocation="sensitivity", criterion="taylor")


def test_the_order_of_a_model_s_classes_changes_nothing(home: Path, learned):  # noqa: F811
    """Gradients of the wrong class, and a good model that is scored as a bad one, look like any others."""
    turned = copy.deepcopy(learned)
    order = [2, 0, 1]
    for parameter in turned.classifier.parameters():
        parameter.data = parameter.data[order]
    turned.config.id2label = {place: COLOURS[i] for place, i in enumerate(order)}
    turned.config.label2id = {name: place for place, name in turned.config.id2label.items()}
    one, two = (calibrated(ENTRY, model, tiny_tokenizer(), recipe(), None, always=False) for model in (learned, turned))
    assert one[2] == pytest.approx(two[2]) and sum(one[2].values()) == pytest.approx(1.0, abs=0.2)
    assert [order[label] for batch in two[1] for label in batch["labels"]] == [int(i) for b in one[1] for i in b["labels"]]
    small, again = (prune(m, x[0], x[1], x[2]) for m, x in ((learned, one), (turned, two)))
    ours, theirs = (m.bert.encoder.layer[0].intermediate.dense.weight for m in (small, again))
    torch.testing.assert_close(ours, theirs)
    turned.config.id2label = dict(enumerate(("up", "down", "left")))
    with pytest.raises(MismatchError, match=r"3 labels up, down, left; the data has 3"):
        calibrated(ENTRY, turned, tiny_tokenizer(), recipe(), None, always=False)
    with pytest.raises(MismatchError, match="BertModel: no model for task: text-classification"):
        calibrated(ENTRY, learned.bert, tiny_tokenizer(), recipe(), None, always=False)


def test_labels_of_tokens_and_sets_are_turned_too():
    """By hand: what the data calls 0, 1, 2 the model calls 2, 0, 1."""
    turn = _turned(["a", "b", "c"], ["b", "c", "a"])
    assert turn(0) == 2 and turn([-100, 1, 2]) == [-100, 0, 1] and turn([1.0, 0.0, 0.0]) == [0.0, 0.0, 1.0]
    rows = _mapped(Dataset.from_dict({"labels": [0, 1], "input_ids": [[5], [6]]}), turn)
    assert rows[:] == {"labels": [2, 0], "input_ids": [[5], [6]]}


def test_a_recipe_s_seed_draws_and_its_bits_round_as_in_its_run(home: Path):  # noqa: F811
    """The command drew by 0 and rounded for 8 bits: the recipe that it saved cut another model."""
    entry = PruningConfig(structure="ffn", sparsity=0.5, criterion="random")
    found, batches, fractions = calibrated(entry, None, None, recipe("seed=7", "quantization={bits: 4}"), None, always=False)
    assert (found.seed, found.round_to, batches, fractions) == (7, 64, None, None)


def test_a_budget_needs_rows_to_be_shared_out_by(tmp_path: Path):
    with pytest.raises(RecipeError, match="add --recipe FILE to measure on"):
        calibrated(ENTRY, None, None, None, tmp_path / "texts.txt", always=True)


def test_labels_that_nobody_reads_are_left_out(home: Path, learned):  # noqa: F811
    """A model without a head, or with that of another task, could not be calibrated on a recipe's texts."""
    entry = PruningConfig(structure="ffn", sparsity=0.5, criterion="activation_norm")
    for model in (learned.bert, learned):
        _, batches, _ = calibrated(entry, model, tiny_tokenizer(), recipe(), None, always=True)
        assert batches and all("labels" not in batch for batch in batches)
        prune(model, entry, batches)
    reading = entry.model_copy(update={"criterion": "mutual_information"})
    assert all("labels" in batch for batch in calibrated(reading, learned, tiny_tokenizer(), recipe(), None, always=True)[1])
