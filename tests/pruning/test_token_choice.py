"""Which tokens of a vocabulary go, and which requests are refused. What these prevent: a frequent word that is gone, a count
over other rows, and a tokenizer that is cut wrongly because it was not understood."""

import pytest
import torch
from transformers import (
    BertTokenizer,
    BertTokenizerFast,
    PreTrainedTokenizer,
)

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.pruning.serialised import read_state, renumbered
from hf_shrink.pruning.tokens import count_tokens, kept_tokens
from hf_shrink.pruning.trimming import trim_tokenizer
from tests import tiny

COLOURS = tiny.tiny_tokenizer()
"""Ids 0 to 3 are special, 7 is "a", a single character; 13 others may go."""


def counts_of(size: int = 20, **seen: int) -> torch.Tensor:
    counts = torch.zeros(size, dtype=torch.int64)
    for word, count in seen.items():
        counts[tiny.VOCABULARY[word]] = count
    return counts


def test_min_count_keeps_what_is_seen_often_enough_and_what_must_stay():
    """By hand, with red = 4, green = 5, house = 10, a = 7."""
    counts = counts_of(red=3, green=2, house=1)
    assert kept_tokens(COLOURS, counts, min_count=2, round_to=1) == [0, 1, 2, 3, 4, 5, 7]
    assert kept_tokens(COLOURS, counts, min_count=1, round_to=1) == [0, 1, 2, 3, 4, 5, 7, 10]
    assert kept_tokens(COLOURS, counts, min_count=2, round_to=1, also=[19]) == [0, 1, 2, 3, 4, 5, 7, 19]


def test_rounding_keeps_the_most_frequent_of_those_that_would_go():
    """By hand: 7 stay, the eighth is "house", seen once; of the unseen the lowest ids come next (6, 8, 9, 11)."""
    counts = counts_of(red=3, green=2, house=1)
    assert kept_tokens(COLOURS, counts, min_count=2) == [0, 1, 2, 3, 4, 5, 7, 10]
    assert kept_tokens(COLOURS, counts, min_count=2, round_to=12) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]


def test_sparsity_removes_the_rarest_first_and_of_ties_the_highest_id():
    """By hand: a quarter of 20 is 5: the unseen ones from the end, though "song" (19) was seen."""
    counts = counts_of(red=3, song=1)
    assert kept_tokens(COLOURS, counts, sparsity=0.25, round_to=1) == [*range(14), 19]
    assert kept_tokens(COLOURS, counts, sparsity=0.25) == [*range(15), 19]
    assert kept_tokens(COLOURS, counts, sparsity=0) == list(range(20))


def test_ids_that_no_token_has_go_first():
    """Vocabularies of models are often padded: a row that no text can reach is worth less than a word that was not seen."""
    counts = counts_of(24)
    assert kept_tokens(COLOURS, counts, sparsity=0.2, round_to=1) == list(range(19))
    assert kept_tokens(COLOURS, counts, sparsity=0.2, round_to=1, also=[23]) == [*range(18), 23]
    kept = kept_tokens(COLOURS, counts, min_count=1, also=[23])
    assert kept == [0, 1, 2, 3, 4, 5, 7, 23]
    assert len(trim_tokenizer(COLOURS, kept)) == 7


def test_more_than_may_go_is_refused_with_how_many_may():
    """Removing special tokens in silence would break every text."""
    with pytest.raises(RecipeError, match=r"removes 18 of 20 tokens, at most 15 can go.*sparsity 0\.75"):
        kept_tokens(COLOURS, counts_of(), sparsity=0.9, round_to=1)
    assert kept_tokens(COLOURS, counts_of(), sparsity=0.75, round_to=1) == [0, 1, 2, 3, 7]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "give min_count or sparsity"),
        ({"min_count": 1, "sparsity": 0.5}, "give min_count or sparsity"),
        ({"min_count": 0}, "at least 1"),
        ({"sparsity": 1.0}, r"\[0, 1\)"),
        ({"sparsity": 0.5, "round_to": 0}, "round_to"),
        ({"sparsity": 0.1, "round_to": 64}, "removes 0 of 20"),
    ],
)
def test_requests_that_cannot_be_meant_are_refused(how, message):
    """A setting that removes nothing would be believed to have worked."""
    with pytest.raises(RecipeError, match=message):
        kept_tokens(COLOURS, counts_of(), **how)
    with pytest.raises(RecipeError, match="removes 0 of 20"):
        kept_tokens(COLOURS, torch.ones(20, dtype=torch.int64), min_count=1)


def test_a_tokenizer_of_another_model_is_refused():
    """Counts by other ids would keep the wrong words."""
    with pytest.raises(MismatchError, match=r"outside the model's vocabulary of 12"):
        kept_tokens(COLOURS, counts_of()[:12], min_count=1)
    counts = counts_of(24)
    counts[22] = 3
    with pytest.raises(MismatchError, match="token id 22 was counted 3 times"):
        kept_tokens(COLOURS, counts, min_count=1)


def test_counts_are_those_of_the_rows():
    """By hand, for lists, tensors and an empty row."""
    counts = count_tokens([[1, 2, 2], torch.tensor([2, 4]), []], 5)
    assert (counts.tolist(), counts.dtype) == ([0, 1, 3, 0, 1], torch.int64)


@pytest.mark.parametrize("bad", [-100, 5])
def test_an_id_outside_the_vocabulary_is_named_with_its_row(bad):
    """-100, which labels are padded with, would count from the end."""
    with pytest.raises(MismatchError, match=rf"row 1: token id {bad} is not in the model's vocabulary of 5"):
        count_tokens([[1], [2, bad]], 5)


class _Slow(PreTrainedTokenizer):
    vocab_size = 1

    def get_vocab(self):
        return {"a": 0}


def test_what_cannot_be_cut_is_refused():
    """Each of these would come out with another vocabulary than the model."""
    with pytest.raises(MismatchError, match="_Slow is no fast tokenizer"):
        trim_tokenizer(_Slow(), [0])
    with pytest.raises(MismatchError, match=r"kept lacks '\[UNK\]' \(id 1\)"):
        trim_tokenizer(COLOURS, [0, 2, 3, 4])
    with pytest.raises(MismatchError, match="ascending"):
        trim_tokenizer(COLOURS, [1, 0, 2, 3])
    with pytest.raises(MismatchError, match="ascending"):
        trim_tokenizer(COLOURS, [0, 0, 1, 2, 3])
    coded = tiny.tiny_tokenizer()
    coded.lang_code_to_id = {"en": 4}
    with pytest.raises(MismatchError, match="lang_code_to_id"):
        trim_tokenizer(coded, [0, 1, 2, 3, 4])
    state = read_state(COLOURS)
    state["post_processor"] = {"type": "Strange"}
    with pytest.raises(MismatchError, match="Strange"):
        renumbered(state, {index: index for index in range(20)})


def test_bert_has_one_class_under_both_names():
    """The tests above go through one of them."""
    assert BertTokenizer is BertTokenizerFast
