"""Windows of contexts. What these prevent: a place that is one token off, and an answer learnt where it is not."""

import json
from pathlib import Path

import pytest

from hf_shrink.data.config import DataConfig
from hf_shrink.data.splits import Splits, load_splits
from hf_shrink.data.tokenize import TokenizedSplits, tokenize
from hf_shrink.errors import MismatchError
from tests.tiny import VOCABULARY, tiny_tokenizer

CONTEXT = "a bird of the river road lamp door red song house tree"


def row(context: str = CONTEXT, answer: str = "red song", start: int | None = None, question: str = "the colour") -> dict:
    at = context.index(answer) if start is None else start
    return {"question": question, "context": context, "answers": {"text": [answer], "answer_start": [at]}}


def read(folder: Path, rows: list[dict], **config) -> Splits:
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load_splits(DataConfig(dataset=str(folder), **config), "question-answering")


def windows(folder: Path, rows: list[dict], length: int, **config) -> TokenizedSplits:
    return tokenize(read(folder, rows, **config), tiny_tokenizer(), length)


def test_a_short_context_is_one_window_and_the_answer_stands_at_its_tokens(tmp_path: Path):
    found = windows(tmp_path, [row()], 32, doc_stride=4)
    assert found.train["input_ids"][0][:4] == [2, VOCABULARY["the"], 1, 3]  # [CLS] question [SEP]
    first, last = found.train["start_positions"][0], found.train["end_positions"][0]
    assert found.train["input_ids"][0][first : last + 1] == [VOCABULARY["red"], VOCABULARY["song"]]
    assert found.test["offsets"][0][first] == [CONTEXT.index("red"), CONTEXT.index("red") + 3]
    assert found.test["offsets"][0][:4] == [[-1, -1]] * 4


def test_a_long_context_is_cut_into_windows_that_share_the_stride(tmp_path: Path):
    """12 words in room for 7: windows begin at words 0, 4, 8; the answer, words 8 and 9, is whole in the last two."""
    found = windows(tmp_path, [row()], 12, doc_stride=3)
    words = [[VOCABULARY[w] for w in CONTEXT.split()[i : i + 7]] for i in (0, 4, 8)]
    assert [ids[4:-1] for ids in found.train["input_ids"]] == words
    assert list(zip(found.train["start_positions"], found.train["end_positions"], strict=True)) == [(0, 0), (8, 9), (4, 5)]
    assert found.test["example"] == [0, 0, 0]


def test_batches_are_padded_behind_their_end_and_hold_nothing_else(tmp_path: Path):
    splits = read(tmp_path, [row(), row("red song", "red")], doc_stride=4)
    found = tokenize(splits, tiny_tokenizer(), 32).test
    batch = splits.format.collator(tiny_tokenizer())([found[0], found[1]])
    assert set(batch) == {"input_ids", "attention_mask", "start_positions", "end_positions"}
    assert batch["attention_mask"].sum(dim=1).tolist() == [17, 7] and batch["input_ids"][1, 7:].eq(0).all()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([row(start=3)], "row 0: the answer 'red song' is not in the context at 3"),
        ([row(), {**row(), "answers": {"text": [], "answer_start": []}}], "row 1: no answer"),
        ([{**row(), "answers": "red"}], "row 0: answers hold 'red'"),
        ([{**row(), "answers": {"text": ["red"], "answer_start": []}}], "row 0: answers hold"),
        ([{"question": "q", "context": "c"}], "no column 'answers'"),
        ([row("", "", 0)], "row 0: the answer '' is not in the context"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[dict], says: str):
    with pytest.raises(MismatchError, match=says):
        windows(tmp_path, rows, 32)


def test_a_question_that_leaves_no_room_is_named(tmp_path: Path):
    with pytest.raises(MismatchError, match=r"train row 0: 12 tokens leave 4 for the context beside a question of 5"):
        windows(tmp_path, [row(question="a the of house tree")], 12, doc_stride=4)
