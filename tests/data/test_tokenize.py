"""Tokens. What these prevent: tokens that are not their row's, and texts longer than the model can take."""

import pytest
from datasets import Dataset

from hf_shrink.data.config import DataConfig
from hf_shrink.data.splits import Splits
from hf_shrink.data.text_classification import ClassFormat
from hf_shrink.data.tokenize import tokenize
from hf_shrink.errors import MismatchError
from tests.tiny import COLOURS, VOCABULARY, colour_texts, tiny_tokenizer


def splits(train: Dataset) -> Splits:
    validation = colour_texts(5, seed=1)
    return Splits(train, validation, validation, COLOURS, {}, ClassFormat(DataConfig(dataset="d")))


def test_every_row_keeps_its_order_its_tokens_and_its_label():
    data = colour_texts(40)
    tokens = tokenize(splits(data), tiny_tokenizer(), 64).train
    assert set(tokens.column_names) == {"input_ids", "attention_mask", "labels"}
    assert tokens["labels"] == data["label"]
    for ids, mask, text in zip(tokens["input_ids"], tokens["attention_mask"], data["text"], strict=True):
        assert ids == [VOCABULARY["[CLS]"], *(VOCABULARY[word] for word in text.split()), VOCABULARY["[SEP]"]]
        assert mask == [1] * len(ids)


def test_long_texts_are_cut_and_keep_their_end_marker():
    tokens = tokenize(splits(colour_texts(40)), tiny_tokenizer(), 6).train
    assert max(map(len, tokens["input_ids"])) == 6
    assert {ids[-1] for ids in tokens["input_ids"]} == {VOCABULARY["[SEP]"]}


def test_pairs_have_both_texts():
    data = Dataset.from_dict({"text": ["red house", "a"], "text_pair": ["the tree", "blue"], "label": [0, 1]})
    ids = tokenize(splits(data), tiny_tokenizer(), 64).train["input_ids"]
    words = ("[CLS]", "red", "house", "[SEP]", "the", "tree", "[SEP]")
    assert ids[0] == [VOCABULARY[word] for word in words]


def test_a_test_split_that_is_the_validation_split_is_tokenised_once():
    tokens = tokenize(splits(colour_texts(4)), tiny_tokenizer(), 64)
    assert tokens.test is tokens.validation


def test_more_tokens_than_the_model_takes_is_refused():
    """The position embedding would be read past its end: an IndexError in the middle of training."""
    with pytest.raises(MismatchError, match=r"data.max_length: 65 tokens, but the model takes at most 64"):
        tokenize(splits(colour_texts(4)), tiny_tokenizer(), 65)


def test_a_text_without_a_token_is_refused():
    """A row of no tokens fails in the model, far from the row."""
    bare = tiny_tokenizer()
    bare.backend_tokenizer.post_processor = None
    data = Dataset.from_dict({"text": ["red", " "], "label": [0, 1]})
    with pytest.raises(MismatchError, match="train row 1: the text ' ' has no token"):
        tokenize(splits(data), bare, 64)


def test_nothing_is_printed_without_a_terminal(capfd: pytest.CaptureFixture[str]):
    tokenize(splits(colour_texts(4)), tiny_tokenizer(), 64)
    assert capfd.readouterr() == ("", "")
