"""Files and folders. What these prevent: texts and rows that change or vanish while a file is read."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_shrink.data.config import DataConfig
from hf_shrink.data.local import read_local
from hf_shrink.data.rows import Columns
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.files import sha256

WANTED = Columns({"text": "text"}, {"label": "label"})
ROWS = [("red", 0), ('say "hi", now', 1), ("two\nlines", 0), ("NA", 1), ("null", 0), ("", 1), ("1", 0), ("ünï", 1)]


def config(path: Path, **more: object) -> DataConfig:
    return DataConfig(dataset=str(path), **more)


def read(path: Path, **more: object) -> Dataset:
    return read_local(path, config(path, **more), WANTED).splits["train"]


def write(path: Path) -> Path:
    columns = {"label": [label for _, label in ROWS], "text": [text for text, _ in ROWS]}
    if path.suffix == ".csv":
        quoted = [f'"{text.replace(chr(34), chr(34) * 2)}",{label}' for text, label in ROWS]
        path.write_text("text,label\n" + "\n".join(quoted) + "\n", encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in ROWS), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps([{"text": t, "label": n} for t, n in ROWS], indent=1), encoding="utf-8")
    else:
        pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", ["d.csv", "d.json", "d.jsonl", "d.parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str):
    """A reader that takes NA, null or an empty text for a missing value would drop or refuse real rows."""
    data = read(write(tmp_path / name))
    assert list(zip(data["text"], data["label"], strict=True)) == ROWS


def test_tab_separated_texts_may_begin_with_a_quote(tmp_path: Path):
    """Read as quoting, one opening quote swallows every row up to the next one."""
    path = tmp_path / "d.tsv"
    path.write_text('text\tlabel\n"unclosed\t0\nplain\t1\nend"\t0\n')
    assert read(path)["text"] == ['"unclosed', "plain", 'end"']


def test_a_text_column_of_numbers_stays_text(tmp_path: Path):
    path = tmp_path / "d.csv"
    path.write_text("text,label\n007,0\n1e3,1\n")
    assert read(path)["text"] == ["007", "1e3"]


def test_label_types_come_from_every_row(tmp_path: Path):
    """A type taken from the first rows only would refuse the last one, or worse, read it as something else."""
    path = tmp_path / "d.csv"
    path.write_text("text,label\n" + "some words,1\n" * 200_000 + "x,unknown\n")
    assert read(path)["label"][-2:] == ["1", "unknown"]


def test_a_row_may_be_as_long_as_it_likes(tmp_path: Path):
    """The CSV reader works in blocks of a megabyte unless told otherwise, and stops at a longer row."""
    path = tmp_path / "d.csv"
    path.write_text(f"text,label\nshort,0\n{'long ' * 600_000},1\n")
    assert [len(text) for text in read(path)["text"]] == [5, 3_000_000]


def test_class_names_stored_in_parquet_survive(tmp_path: Path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet(tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet").features["label"].names == ["bad", "good"]


def test_a_changed_file_is_read_anew_although_its_time_is_the_same(tmp_path: Path):
    """A cache that looks at times only would train on the old rows."""
    path = tmp_path / "d.csv"
    for text in ("old", "new"):
        path.write_text(f"text,label\n{text},0\n")
        os.utime(path, (1, 1))
        assert read(path)["text"] == [text]


def test_a_folder_has_a_split_per_name_and_joins_shards_in_order(tmp_path: Path):
    for number, text in ((1, "b"), (0, "a")):
        pq.write_table(pa.table({"text": [text], "label": [0]}), tmp_path / f"train-0000{number}-of-00002.parquet")
    (tmp_path / "test.csv").write_text("text,label\nc,1\n")
    (tmp_path / "README.md").write_text("not data")
    raw = read_local(tmp_path, config(tmp_path), WANTED)
    assert {name: split["text"] for name, split in raw.splits.items()} == {"train": ["a", "b"], "test": ["c"]}


def test_the_source_names_files_with_their_hashes_and_no_folder(tmp_path: Path):
    """The card is published: no path of this machine may be in it."""
    path = write(tmp_path / "d.csv")
    source = read_local(path, config(path), WANTED).source
    assert source == {"dataset": "d.csv", "sha256 of d.csv": sha256(path)}
    assert str(tmp_path) not in str(read_local(tmp_path, config(tmp_path), WANTED).source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", b"text,label\na,1\nb\n", "Expected 2 columns, got 1"),
        ("d.csv", b"text,label\n\xff,1\n", "UTF8"),
        ("d.csv", b"", "0 rows: the file is empty"),
        ("d.csv", b"txt,label\na,1\n", "no column 'text'. Did you mean 'txt'? Columns present: 'txt', 'label'"),
        ("d.csv", b"text,text,label\na,b,1\n", "2 columns named 'text'"),
        ("d.jsonl", b'{"text": "a", "label": 1}\n{"text": \n', r"d.jsonl:2: not valid JSON"),
        ("d.jsonl", b'{"text": "a"}\n', "no column 'label'"),
        ("d.json", b"[1]", "row 0 is not an object"),
        ("d.json", b"[" * 100_000, "cannot be read as json"),
        ("d.json", b'[{"text": "a", "label": 1}, {"text": 2, "label": 1}]', "cannot be read as json"),
        ("d.parquet", b"PAR1 not really", "cannot be read as parquet"),
        ("d.parquet", None, "no column 'text'"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes | None, message: str):
    path = tmp_path / name
    if content is None:
        pq.write_table(pa.table({"label": [1]}), path)
    else:
        path.write_bytes(content)
    with pytest.raises(MismatchError) as caught:
        read(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(name)
    assert str(tmp_path) not in str(caught.value)


def test_a_folder_that_is_not_one_data_set_is_refused(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"has no file that ends in \.csv"):
        read(tmp_path)
    (tmp_path / "train.csv").write_text("text,label\na,1\n")
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 1}\n')
    with pytest.raises(RecipeError, match="two files for split 'train'"):
        read(tmp_path)
    (tmp_path / "notes.txt").write_text("a")
    with pytest.raises(RecipeError, match=r"notes.txt ends in none of \.csv"):
        read(tmp_path / "notes.txt")


@pytest.mark.parametrize("key", ["revision", "subset"])
def test_options_of_the_hub_are_refused_for_files(tmp_path: Path, key: str):
    with pytest.raises(RecipeError, match=rf"data.{key}: would be ignored"):
        read(write(tmp_path / "d.csv"), **{key: "x"})
