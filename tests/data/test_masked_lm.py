"""Hidden tokens. What these prevent: special tokens or padding among them, other ones for each model, none at all."""

import json
from pathlib import Path

import pytest
import torch

from hf_shrink.data.config import DataConfig
from hf_shrink.data.splits import Splits, load_splits
from hf_shrink.data.tokenize import tokenize
from hf_shrink.errors import MismatchError
from tests.tiny import VOCABULARY, colour_texts, tiny_tokenizer

MASK = len(VOCABULARY)


def splits(folder: Path, texts: list[str], **config) -> Splits:
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return load_splits(DataConfig(dataset=str(folder), **config), "masked-lm")


def test_packed_texts_are_framed_blocks_with_a_separator_between_texts(tmp_path: Path):
    found = tokenize(splits(tmp_path, ["red house", "tree bird stone", "door"]), tiny_tokenizer(mask=True), 8)
    red, house, tree, bird, stone, door = (VOCABULARY[w] for w in ("red", "house", "tree", "bird", "stone", "door"))
    assert found.train["input_ids"] == [[2, red, house, 3, tree, bird, stone, 3], [2, door, 3]]


def test_test_rows_are_hidden_once_and_training_rows_anew(tmp_path: Path):
    data = splits(tmp_path, colour_texts(200)["text"])
    tokenizer = tiny_tokenizer(mask=True)
    one, other = tokenize(data, tokenizer, 32), tokenize(data, tokenizer, 32)
    assert one.test[:] == other.test[:] and "labels" not in one.train.column_names
    collate = data.format.collator(tokenizer)
    rows = [one.train[i] for i in range(16)]
    first = collate(rows)["labels"]
    collate.set_epoch(1, 0)
    assert not torch.equal(first, collate(rows)["labels"])
    labels = torch.cat([torch.tensor(row) for row in one.test["labels"]])
    ids = torch.cat([torch.tensor(row) for row in one.test["input_ids"]])
    asked = labels != -100
    assert 0.10 < asked.float().mean() < 0.20  # 0.15 of 1,700 tokens, five standard errors
    assert not torch.isin(labels[asked], torch.tensor([0, 1, 2, 3, MASK])).any()
    assert 0.68 < (ids[asked] == MASK).float().mean() < 0.92  # eight in ten
    assert torch.equal(ids[~asked], torch.cat([torch.tensor(row) for row in one.train["input_ids"]])[~asked])


def test_every_row_of_a_batch_has_a_hidden_token_and_padding_is_none(tmp_path: Path):
    """A batch without any has a loss of 0 / 0."""
    data = splits(tmp_path, ["red", "the house of the bird"] * 8, packing=False, mask_probability=0.01)
    tokenizer = tiny_tokenizer(mask=True)
    found = tokenize(data, tokenizer, 16)
    batch = data.format.collator(tokenizer)([found.train[i] for i in range(16)])
    asked = batch["labels"] != -100
    assert asked.any(dim=1).all() and not asked[batch["attention_mask"] == 0].any()
    assert batch["labels"][0, 1] == VOCABULARY["red"] and batch["input_ids"][0].tolist()[:3] == [2, MASK, 3]
    assert all(any(label != -100 for label in row) for row in found.test["labels"])


def test_a_text_of_unknown_words_alone_is_left_out_and_no_other_is_an_error(tmp_path: Path):
    found = tokenize(splits(tmp_path, ["zz yy", "red"], packing=False), tiny_tokenizer(mask=True), 8)
    assert len(found.train) == len(found.test) == 1
    with pytest.raises(MismatchError, match="0 tokens to hide"):
        tokenize(splits(tmp_path, ["zz"], packing=False), tiny_tokenizer(mask=True), 8)


def test_a_tokenizer_without_a_mask_token_is_refused(tmp_path: Path):
    with pytest.raises(MismatchError, match="no mask token"):
        tokenize(splits(tmp_path, ["red"]), tiny_tokenizer(), 8)


def test_what_is_hidden_follows_from_seed_epoch_and_row_alone(tmp_path: Path):
    """By order, batch or padding it would be another run at each resume, and for each number of micro-batches."""
    data = splits(tmp_path, colour_texts(40)["text"], packing=False)
    tokenizer = tiny_tokenizer(mask=True)
    rows = list(tokenize(data, tokenizer, 32).train)
    collate, other = (data.format.collator(tokenizer) for _ in range(2))
    found = {}
    for seed, epoch in ((3, 0), (3, 1), (4, 0)):
        collate.set_epoch(epoch, seed)
        other.set_epoch(epoch, seed)
        torch.rand(7)
        whole, backwards = collate(rows), [other([row]) for row in reversed(rows)]
        for name, fill in (("input_ids", 0), ("labels", -100)):
            for i, alone in enumerate(reversed(backwards)):
                length = alone[name].shape[1]
                assert torch.equal(whole[name][i, :length], alone[name][0]) and (whole[name][i, length:] == fill).all()
        found[seed, epoch] = whole["labels"]
    assert not torch.equal(found[3, 0], found[3, 1]) and not torch.equal(found[3, 0], found[4, 0])
