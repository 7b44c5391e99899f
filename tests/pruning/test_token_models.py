"""What the models inside tokenizers do with a cut vocabulary: merges, unknown tokens, padding. What these prevent: a word that
is split otherwise than before, and an unknown character that changes its neighbours."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
)

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.pruning.merges import parts_of
from hf_shrink.pruning.serialised import read_state, renumbered
from hf_shrink.pruning.tokens import count_tokens, kept_tokens
from hf_shrink.pruning.trimming import trim_tokenizer
from tests.pruning.test_tokens import gpt2, ids_of, words

TEXTS = st.lists(st.text(alphabet="abc ", min_size=1, max_size=12), min_size=1, max_size=12)


@settings(max_examples=150)
@given(corpus=TEXTS, data=st.data())
def test_merges_on_the_way_to_a_kept_token_stay(corpus, data):
    """Random merges in random order, so that one token may be made in several ways: what was counted is split as before."""
    vocab = {"[UNK]": 0, "a": 1, "b": 2, "c": 3}
    merges = []
    for _ in range(data.draw(st.integers(1, 25))):
        pair = tuple(data.draw(st.sampled_from(list(vocab)[1:])) for _ in range(2))
        vocab.setdefault("".join(pair), len(vocab))
        if pair not in merges:
            merges.append(pair)
    merges = data.draw(st.permutations(merges))
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    rows = ids_of(tokenizer, corpus)
    try:
        kept = kept_tokens(tokenizer, count_tokens(rows, len(tokenizer)), min_count=1, round_to=1)
    except RecipeError:
        return  # nothing was unseen
    small = Tokenizer.from_str(
        json.dumps(renumbered(read_state(tokenizer), {old: new for new, old in enumerate(kept)})),
    )
    assert [[kept[token] for token in small.encode(text).ids] for text in corpus] == rows


def test_the_cost_of_an_unknown_character_stays_the_same():
    """By hand: it is the lowest score less 10. "rare" makes that -70, so xy zw (-60) beats ?yzw (-75); else -45 wins."""
    pieces = [("<unk>", 0.0), ("xy", -30.0), ("zw", -30.0), ("yzw", -5.0), ("rare", -60.0), ("a", -1.0), ("aa", -2.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    texts = ["xyzw", "yzw", "a"]
    assert ids_of(tokenizer, texts) == [[1, 2], [3], [5]]
    counts = count_tokens(ids_of(tokenizer, texts), len(tokenizer))
    kept = kept_tokens(tokenizer, counts, min_count=1, round_to=1)
    assert kept == [0, 1, 2, 3, 4, 5]
    assert ids_of(trim_tokenizer(tokenizer, kept), texts) == [[1, 2], [3], [5]]
    without = trim_tokenizer(tokenizer, [0, 1, 2, 3, 5])
    assert ids_of(without, texts)[0] != [1, 2], "the score has to matter in this test"


def test_the_unknown_token_of_a_unigram_keeps_its_number():
    """Classes such as Camembert's build the model again with a fixed number for it: what stands before it has to stay."""
    pieces = [("<old>", 0.0), ("NOTUSED", 0.0), ("<unk>", 0.0), ("a", -1.0), ("b", -9.0), ("ab", -2.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert kept_tokens(tokenizer, torch.zeros(6, dtype=torch.int64), min_count=1, round_to=1) == [0, 1, 2, 3, 4]


def test_an_unknown_token_far_back_does_not_keep_all_before_it():
    """Nothing could go otherwise."""
    pieces = [(f"piece{index}", -1.0 - index) for index in range(20)]
    backend = Tokenizer(models.Unigram([*pieces, ("<unk>", 0.0)], unk_id=20))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    counts = torch.zeros(21, dtype=torch.int64)
    counts[5] = 1
    kept = kept_tokens(tokenizer, counts, min_count=1, round_to=1)
    assert kept == [5, 19, 20]  # 19 has the lowest score
    small = trim_tokenizer(tokenizer, kept)
    assert [kept[token] for token in small("piece5?")["input_ids"]] == tokenizer("piece5?")["input_ids"] == [5, 20]


class _OwnNumber(PreTrainedTokenizerFast):
    """A class that builds its model itself, with the unknown token where it used to be."""

    def __init__(self, vocab=None, **more):
        backend = Tokenizer(models.Unigram([tuple(pair) for pair in vocab], unk_id=min(9, len(vocab) - 1)))
        super().__init__(tokenizer_object=backend, **more)


def test_a_class_that_would_load_with_another_unknown_token_is_refused():
    """Ids and tokens would all be right, and unknown characters some word."""
    pieces = [(f"piece{index}", -1.0 - index) for index in range(9)]
    tokenizer = _OwnNumber([*pieces, ("<unk>", 0.0), ("more", -20.0), ("most", -30.0)], unk_token="<unk>")
    with pytest.raises(MismatchError, match=r"_OwnNumber: the unknown token has id 3 after loading it again, expected 1"):
        trim_tokenizer(tokenizer, [4, 9, 10, 11])


def test_padding_that_the_backend_does_itself_has_the_new_id():
    """Used by hand, and by other programs that read tokenizer.json, it pads without asking the wrapper."""
    tokenizer = words()
    before = tokenizer.backend_tokenizer.padding
    kept = kept_tokens(tokenizer, torch.zeros(len(tokenizer), dtype=torch.int64), min_count=1)
    after = trim_tokenizer(tokenizer, kept).backend_tokenizer.padding
    assert before["pad_id"] == len(tokenizer) - 1
    assert after == before | {"pad_id": len(kept) - 1}


def test_parts_are_those_of_the_merges_that_happen():
    """By hand: "abc" is made as (a, bc), since b-c comes first; the way over "ab" is never taken. Both spellings of merges."""
    vocab = {token: index for index, token in enumerate(["a", "b", "c", "ab", "bc", "abc", "ca"])}
    merges = [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")]
    expected = {3: (0, 1), 4: (1, 2), 5: (0, 4)}
    assert parts_of({"vocab": vocab, "merges": [list(pair) for pair in merges]}) == expected
    assert parts_of({"vocab": vocab, "merges": [" ".join(pair) for pair in merges]}) == expected


def test_a_token_that_another_is_made_from_stays_unseen_or_not():
    """By hand: only "abc" was seen. Its parts "bc", and the characters, stay; "ab" and "ca" go."""
    vocab = {token: index for index, token in enumerate(["[UNK]", "a", "b", "c", "ab", "bc", "abc", "ca"])}
    merges = [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc"), ("c", "a")]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab, merges)), unk_token="[UNK]")
    counts = torch.tensor([0, 0, 0, 0, 0, 0, 4, 0])
    assert kept_tokens(tokenizer, counts, min_count=1, round_to=1) == [0, 1, 2, 3, 5, 6]
    only_ca = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
    assert kept_tokens(tokenizer, only_ca, min_count=1, round_to=1) == [0, 1, 2, 3, 7], "parts of what goes may go too"
    small = trim_tokenizer(tokenizer, [0, 1, 2, 3, 5, 6])
    assert json.loads(small.backend_tokenizer.to_str())["model"]["merges"] == [["b", "c"], ["a", "bc"]]
    with pytest.raises(RecipeError, match=r"removes 3 of 8 tokens, at most 2 can go"):
        kept_tokens(tokenizer, counts, sparsity=0.4, round_to=1, also=[6])


def test_merges_written_as_strings_are_cut_too():
    """Files from before 2024 have them so."""
    state = read_state(gpt2())
    new_ids = {old: new for new, old in enumerate(sorted(state["model"]["vocab"].values())[:300])}
    new_ids |= {token["id"]: 300 + place for place, token in enumerate(state["added_tokens"]) if token["id"] not in new_ids}
    listed = renumbered(state, new_ids)
    state["model"]["merges"] = [" ".join(merge) for merge in state["model"]["merges"]]
    assert renumbered(state, new_ids) == listed
    assert 10 < len(listed["model"]["merges"]) < len(state["model"]["merges"])
