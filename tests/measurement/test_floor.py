"""The floor must work where words decide, and say what it needs."""

import sys

import pytest
from datasets import Dataset

from hf_shrink.errors import MismatchError, RecipeError, ResourceError
from hf_shrink.measurement.floor import floor
from tests.tiny import colour_texts


def test_it_learns_a_task_that_one_word_decides():
    """A floor that cannot do this flatters every model above it."""
    found = floor("tfidf", colour_texts(300), colour_texts(100, seed=1))
    assert found.correct.mean() > 0.95
    assert found.labels.tolist() == colour_texts(100, seed=1)["label"]


def test_single_letters_and_digits_count_as_words():
    """The default word pattern drops them: 'type 1' and 'type 2' would be the same text."""
    train = Dataset.from_dict({"text": ["type 1", "type 2"] * 30, "label": [0, 1] * 30})
    assert floor("tfidf", train, train).correct.all()


def test_both_texts_of_a_pair_are_read():
    pairs = {"text": ["same"] * 40, "text_pair": ["red", "blue"] * 20, "label": [0, 1] * 20}
    data = Dataset.from_dict(pairs)
    assert floor("tfidf", data, data).correct.all()


def test_a_missing_scikit_learn_says_what_to_install(monkeypatch):
    """It is optional: without it the recipe must name the extra, not end in an ImportError."""
    for name in ("sklearn", "sklearn.feature_extraction.text", "sklearn.linear_model", "sklearn.pipeline"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ResourceError, match=r"pip install 'hf_shrink\[baseline\]'"):
        floor("tfidf", colour_texts(5), colour_texts(5))


def test_what_cannot_be_learnt_and_unknown_names_are_explained():
    one = Dataset.from_dict({"text": ["a b", "c d"], "label": [1, 1]})
    with pytest.raises(MismatchError, match=r"measurement\.floor"):
        floor("tfidf", one, one)
    with pytest.raises(RecipeError, match="Did you mean 'tfidf'"):
        floor("tf-idf", one, one)
