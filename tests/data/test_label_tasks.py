"""Tags, label sets and numbers as labels. What these prevent: labels that slip to another word, class or row in silence."""

import json
from pathlib import Path

import pytest
import torch

from hf_shrink.data.config import DataConfig
from hf_shrink.data.splits import Splits, load_splits
from hf_shrink.data.tokenize import tokenize
from hf_shrink.errors import MismatchError
from tests.tiny import VOCABULARY, tiny_tokenizer


def read(folder: Path, task: str, rows: list[dict], test: list[dict] | None = None, **more: object) -> Splits:
    for split, own in {"train": rows, "validation": rows, "test": test or rows}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    return load_splits(DataConfig(dataset=str(folder), **more), task)


def sentence(words: str, tags: list) -> dict:
    return {"tokens": words.split(), "tags": tags}


def test_a_tag_is_learnt_where_its_word_begins(tmp_path: Path):
    """[CLS] and [SEP] stand around the words; 'redhouse' is no word of the vocabulary and becomes one unknown token."""
    splits = read(
        tmp_path, "token-classification", [sentence("the red house", ["O", "B-C", "O"]), sentence("redhouse", ["B-C"])]
    )
    assert splits.label_names == ("B-C", "O")
    rows = tokenize(splits, tiny_tokenizer(), 16).train
    assert rows["input_ids"][0] == [2, VOCABULARY["the"], VOCABULARY["red"], VOCABULARY["house"], 3]
    assert rows["labels"] == [[-100, 1, 0, 1, -100], [-100, 0, -100]]


def test_later_pieces_of_a_word_do_not_count(tmp_path: Path):
    """The tokenizer splits at the dot: three tokens, one word, one tag."""
    rows = tokenize(read(tmp_path, "token-classification", [sentence("a.b the", ["X", "O"])]), tiny_tokenizer(), 16).train
    assert rows["labels"][0] == [-100, 1, -100, -100, 0, -100]


def test_batches_of_sentences_are_padded_with_what_never_counts(tmp_path: Path):
    splits = read(tmp_path, "token-classification", [sentence("the red house", [0, 1, 0]), sentence("tree", [0])])
    rows = tokenize(splits, tiny_tokenizer(), 16).train
    batch = splits.format.collator(tiny_tokenizer())([rows[0], rows[1]])
    assert batch["labels"].tolist() == [[-100, 0, 1, 0, -100], [-100, 0, -100, -100, -100]]


@pytest.mark.parametrize(
    ("rows", "test", "says"),
    [
        ([sentence("the house", ["O", "X"]), sentence("a tree", ["O"])], None, "row 1: 1 tags for 2 words"),
        ([sentence("the house", ["O", "X"])], [sentence("a", ["Y"])], "row 0: label 'Y' is none of the 2 classes: 'O', 'X'"),
        ([sentence("the house", ["O", "X"])], [sentence("a", [2])], "row 0: label 2 is none of the 2 classes"),
        ([{"tokens": "the house", "tags": ["O"]}], None, "tokens hold 'the house', not a list of words"),
        ([{"tokens": ["a"], "tags": "O"}], None, "row 0: tags hold 'O'"),
        ([{"tokens": [], "tags": []}], None, r"tokens hold \[\], not a list of words"),
        ([sentence("the", ["O"])], None, "at least 2 classes"),
        ([{"tokens": ["a"], "tag": ["O"]}], None, r"no column 'tags'.*Did you mean 'tag'\?"),
        ([sentence("the house", [1, 2])], None, "at least 2 classes are needed, from 0 on"),
    ],
)
def test_bad_sentences_are_named(tmp_path: Path, rows: list[dict], test: list[dict] | None, says: str):
    with pytest.raises(MismatchError, match=says):
        read(tmp_path, "token-classification", rows, test)


def labelled(*labels: object) -> list[dict]:
    return [{"text": "the house", "label": label} for label in labels]


def test_label_sets_become_one_column_a_class(tmp_path: Path):
    splits = read(tmp_path, "multi-label-classification", labelled(["b", "a"], [], ["c"]))
    assert splits.label_names == ("a", "b", "c")
    rows = tokenize(splits, tiny_tokenizer(), 16).train
    assert rows["labels"] == [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    batch = splits.format.collator(tiny_tokenizer())([rows[0], rows[1]])
    assert batch["labels"].dtype == torch.float32 and batch["labels"].shape == (2, 3)


def test_numbers_stay_numbers(tmp_path: Path):
    splits = read(tmp_path, "text-regression", labelled(1, 0, 2))
    rows = tokenize(splits, tiny_tokenizer(), 16).train
    assert rows["labels"] == [1.0, 0.0, 2.0]
    assert splits.format.collator(tiny_tokenizer())([rows[0], rows[1]])["labels"].dtype == torch.float32


@pytest.mark.parametrize(
    ("task", "labels", "says"),
    [
        ("multi-label-classification", ["a", "b"], "row 0: label hold 'a'"),
        ("multi-label-classification", [["a"], ["a"]], "at least 2 classes"),
        ("multi-label-classification", [["a", "b"], None], "row 1: label is null"),
        ("multi-label-classification", [[0, 1], [3]], "row 1: label 3 is none of the 2 classes"),
        ("text-regression", ["a", "b"], "labels hold string; expected numbers"),
        ("text-regression", [1.0, float("nan")], "row 1: label nan is no finite number"),
        ("text-regression", [0.5, -100.0], "row 1: label -100 says 'left out'"),
        ("text-regression", [float("inf"), 1.0], "row 0: label inf is no finite number"),
        ("text-regression", [True, False], "labels hold bool"),
        ("text-regression", [1.0, None], "row 1: label is null"),
    ],
)
def test_bad_labels_are_named(tmp_path: Path, task: str, labels: list, says: str):
    with pytest.raises(MismatchError, match=says):
        read(tmp_path, task, labelled(*labels))
