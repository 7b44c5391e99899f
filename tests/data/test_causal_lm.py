"""Running text and chats as tokens. What these prevent: labels that are moved, lost or learnt where they should not be."""

import json
from pathlib import Path

import pytest
import torch

from hf_shrink.data.causal_lm import NextTokenFormat, pack
from hf_shrink.data.config import DataConfig
from hf_shrink.data.splits import Splits, load_splits
from hf_shrink.data.tokenize import check_fit, tokenize
from hf_shrink.errors import MismatchError, RecipeError
from tests.tiny import VOCABULARY, tiny_lm_tokenizer

END = 3
SAID = "{% generation %}{{ m.content }}{% endgeneration %}"
OTHER = "{% else %}{{ m.content }}{% endif %} {% endfor %}"
TEMPLATE = "{% for m in messages %}{% if m.role == 'assistant' %}" + SAID + OTHER
CHAT = [{"role": "user", "content": "the house"}, {"role": "assistant", "content": "a red tree"}]


def write(folder: Path, **splits: list) -> str:
    """A folder with ``train.jsonl`` and so on; a row is a text or a chat."""
    for split, rows in splits.items():
        lines = [{"messages": row} if isinstance(row, list) else {"text": row} for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def read(folder: Path, rows: list, **more: object) -> Splits:
    return load_splits(DataConfig(dataset=write(folder, train=rows, validation=rows, test=rows), **more), "causal-lm")


def ids(text: str) -> list[int]:
    return [VOCABULARY[word] for word in text.split()]


def test_packing_by_hand():
    """Seven tokens and two ends in blocks of four: nothing is lost, and the rest is a shorter block."""
    documents = [([5, 6, 7], [5, 6, 7]), ([8, 9, 10, 11], [8, -100, 10, 11])]
    assert list(pack(iter(documents), 4, END)) == [
        ([5, 6, 7, END], [5, 6, 7, END]),
        ([8, 9, 10, 11], [8, -100, 10, 11]),
        ([END], [END]),
    ]


def test_an_end_that_is_there_is_not_doubled_and_an_unlearnt_last_token_gives_an_unlearnt_end():
    assert list(pack(iter([([5, END], [5, END])]), 8, END)) == [([5, END], [5, END])]
    assert list(pack(iter([([5, 6], [5, -100])]), 8, END)) == [([5, 6, END], [5, -100, -100])]


def test_packed_blocks_hold_every_token_of_the_texts_in_order(tmp_path: Path):
    splits = read(tmp_path, ["the red house", "a blue tree of stone"], max_length=4)
    rows = tokenize(splits, tiny_lm_tokenizer(), 4).train
    stream = [*ids("the red house"), END, *ids("a blue tree of stone"), END]
    assert rows["input_ids"] == [stream[:4], stream[4:8], stream[8:]] == rows["labels"]
    assert rows["attention_mask"] == [[1] * 4, [1] * 4, [1] * 2]


def test_a_rest_of_one_token_predicts_nothing_and_is_left_out(tmp_path: Path):
    """A batch of it alone would have no label: a mean over nothing."""
    rows = tokenize(read(tmp_path, ["the red house of", "a"], max_length=6), tiny_lm_tokenizer(), 6).train
    assert rows["input_ids"] == [[*ids("the red house of"), END, *ids("a")]]


def test_without_packing_each_text_is_cut_by_itself(tmp_path: Path):
    rows = tokenize(read(tmp_path, ["the red house of", "a tree"], packing=False), tiny_lm_tokenizer(), 3).train
    assert rows["input_ids"] == [ids("the red house"), [*ids("a tree"), END]]


def test_a_batch_is_padded_behind_the_end_and_a_real_end_keeps_its_label():
    """Masked by its id, which is that of the padding, no model would learn to stop; padded in front, positions would shift."""
    tokenizer = tiny_lm_tokenizer(padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    rows = [{"input_ids": [5, END], "attention_mask": [1, 1], "labels": [5, END]}]
    rows.append({"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [-100, 6, 7]})
    batch = NextTokenFormat(DataConfig(dataset="d")).collator(tokenizer)(rows)
    assert batch["input_ids"].tolist() == [[5, END, END], [5, 6, 7]]
    assert batch["labels"].tolist() == [[5, END, -100], [-100, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]] and batch["labels"].dtype == torch.int64


def test_a_chat_is_written_by_the_template_and_only_the_assistant_is_learnt_where_asked(tmp_path: Path):
    tokenizer = tiny_lm_tokenizer()
    tokenizer.chat_template = TEMPLATE
    more = {"messages_column": "messages", "packing": False}
    everything = tokenize(read(tmp_path, [CHAT], **more), tokenizer, 64).train
    said = tokenize(read(tmp_path, [CHAT], loss_on="assistant", **more), tokenizer, 64).train
    stream = [*ids("the house a red tree"), END]
    assert everything["input_ids"] == said["input_ids"] == [stream] == everything["labels"]
    assert said["labels"] == [[-100, -100, *stream[2:]]]
    assert read(tmp_path, [CHAT], loss_on="assistant", **more).format.notes(tokenizer) == ()


def test_a_template_that_marks_nothing_is_said_aloud(tmp_path: Path):
    """Asked for the assistant alone, training would learn the user's words, and nobody would know."""
    tokenizer = tiny_lm_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    splits = read(tmp_path, [CHAT], messages_column="messages", loss_on="assistant")
    rows = tokenize(splits, tokenizer, 64).train
    assert rows["labels"] == rows["input_ids"]
    assert any("all tokens of a chat are learnt" in note for note in splits.format.notes(tokenizer))


@pytest.mark.parametrize(
    ("rows", "more", "says"),
    [
        (["the house", None], {}, "row 1: text is null"),
        (["the house", " "], {}, r"train row 1: the text ' ' has no token"),
        (["the house"], {"text_column": "txt"}, r"no column 'txt'.*Did you mean 'text'\?"),
        ([CHAT, []], {"messages_column": "messages"}, r"row 1: \[\] is no chat"),
        ([[{"role": "user", "content": None}]], {"messages_column": "messages"}, "row 0: message .* needs role and content"),
        ([CHAT], {"messages_column": "messages"}, "no chat template"),
        ([CHAT], {}, "no column 'text'"),
        ([5, 6], {}, "column 'text' holds int64, not text"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list, more: dict, says: str):
    with pytest.raises(MismatchError, match=says):
        tokenize(read(tmp_path, rows, **more), tiny_lm_tokenizer(), 64)


def test_a_template_that_refuses_a_chat_names_the_row(tmp_path: Path):
    tokenizer = tiny_lm_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(MismatchError, match="train row 0: the chat template refuses it: roles must alternate"):
        tokenize(read(tmp_path, [CHAT], messages_column="messages"), tokenizer, 64)


def test_a_split_without_a_label_is_refused(tmp_path: Path):
    """Nothing but -100: the loss is a mean over nothing."""
    tokenizer = tiny_lm_tokenizer()
    tokenizer.chat_template = TEMPLATE
    with pytest.raises(MismatchError, match="train: 0 tokens to predict in 1 rows"):
        tokenize(read(tmp_path, [CHAT[:1]], messages_column="messages", loss_on="assistant"), tokenizer, 64)


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path: Path):
    tokenizer = tiny_lm_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(MismatchError, match="no end-of-text token"):
        tokenize(read(tmp_path, ["the house"]), tokenizer, 64)


def test_tokens_and_lengths_that_the_model_does_not_have_are_named(tmp_path: Path):
    """An index error in the middle of training, or positions that were never trained."""
    tokens = tokenize(read(tmp_path, ["the red house of stone"]), tiny_lm_tokenizer(), 64)
    check_fit(tokens, len(VOCABULARY), 6)
    with pytest.raises(MismatchError, match=r"train row 0: token id \d+, but the model's vocabulary has 5 entries"):
        check_fit(tokens, 5, None)
    with pytest.raises(MismatchError, match="train row 0: 6 tokens, but the model takes at most 5"):
        check_fit(tokens, None, 5)


def test_text_files_are_texts_and_their_folders_splits(tmp_path: Path):
    """Read line by line, one speech would be in training and in the test."""
    for split in ("train", "validation", "test"):
        (tmp_path / "whole" / split).mkdir(parents=True)
        for name in ("a", "b"):
            (tmp_path / "whole" / split / f"{name}.txt").write_text(f"the {split}\n\nof {name}\n")
    splits = load_splits(DataConfig(dataset=str(tmp_path / "whole")), "causal-lm")
    assert splits.test["text"] == ["the test\n\nof a\n", "the test\n\nof b\n"] and len(splits.train) == 2
    assert str(tmp_path) not in str(splits.source) and len([key for key in splits.source if "sha256" in key]) == 6


def test_text_files_in_one_folder_are_cut_into_splits_file_by_file(tmp_path: Path):
    for name in "abcdef":
        (tmp_path / f"{name}.txt").write_text(name)
    splits = load_splits(DataConfig(dataset=str(tmp_path), validation_split=None, test_split=None), "causal-lm")
    assert sorted([*splits.train["text"], *splits.validation["text"]]) == [*"abcdef"] and len(splits.validation) == 1


def test_text_files_named_like_splits_are_splits(tmp_path: Path):
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text(f"the {split}")
    assert load_splits(DataConfig(dataset=str(tmp_path)), "causal-lm").test["text"] == ["the test"]


def test_text_files_are_no_data_of_a_task_with_labels(tmp_path: Path):
    """A licence beside the data must not become a split, and a text alone has no label."""
    (tmp_path / "notes.txt").write_text("the house")
    for dataset in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(RecipeError, match=r"ends? in"):
            load_splits(DataConfig(dataset=str(dataset)))


def test_a_file_that_is_no_utf_8_is_refused(tmp_path: Path):
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MismatchError, match=r"d\.txt: cannot be read as txt"):
        load_splits(DataConfig(dataset=str(tmp_path / "d.txt")), "causal-lm")
