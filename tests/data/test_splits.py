"""The three splits. What these prevent: numbers from rows that were trained on, and rows that are dropped without a word."""

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_shrink.data.config import DataConfig
from hf_shrink.data.fingerprints import fingerprint
from hf_shrink.data.splits import load_splits
from hf_shrink.errors import MismatchError, RecipeError, ResourceError
from tests.tiny import colour_texts


def folder(path: Path, **rows: int) -> str:
    for seed, (split, count) in enumerate(rows.items()):
        colour_texts(count, seed=seed).add_column("id", range(count)).to_csv(path / f"{split}.csv")
    return str(path)


def one_file(path: Path, rows: int) -> str:
    text = "\n".join(f"text {i},{i % 2}" for i in range(rows))
    (path / "all.csv").write_text(f"text,label\n{text}\n")
    return str(path / "all.csv")


def test_splits_hold_exactly_the_files_rows(tmp_path: Path):
    splits = load_splits(DataConfig(dataset=folder(tmp_path, train=30, validation=10, test=20)))
    for seed, (split, rows) in enumerate((("train", 30), ("validation", 10), ("test", 20))):
        expected = colour_texts(rows, seed=seed)
        data = getattr(splits, split)
        assert data.column_names == ["text", "label"]
        assert (data["text"], data["label"]) == (expected["text"], expected["label"])
    assert splits.label_names == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_a_tenth_cut_off_shares_no_row_with_training(tmp_path: Path):
    config = DataConfig(dataset=one_file(tmp_path, 100), validation_split=None, test_split=None, seed=3)
    splits = load_splits(config)
    train, validation = set(splits.train["text"]), set(splits.validation["text"])
    assert (len(train), len(validation)) == (90, 10)
    assert not train & validation
    assert splits.test is splits.validation
    assert load_splits(config).validation["text"] == splits.validation["text"]
    other = load_splits(config.model_copy(update={"seed": 4}))
    assert set(other.validation["text"]) != validation


def test_the_cut_does_not_move_when_fewer_rows_are_drawn(tmp_path: Path):
    """Else a model of a short run would be measured on rows that it has seen in a longer one."""
    everything = DataConfig(dataset=one_file(tmp_path, 100), validation_split=None, test_split=None)
    few = load_splits(everything.model_copy(update={"train_samples": 7}))
    assert len(few.train) == 7
    assert few.validation["text"] == load_splits(everything).validation["text"]


def test_drawn_rows_are_some_of_all_rows_in_their_order_with_their_labels(tmp_path: Path):
    path = one_file(tmp_path, 50)
    data = load_splits(DataConfig(dataset=path, validation_split=None, test_split=None, train_samples=20, seed=1)).train
    numbers = [int(text.split()[1]) for text in data["text"]]
    assert len(set(numbers)) == 20
    assert numbers == sorted(numbers)
    assert data["label"] == [number % 2 for number in numbers]


def test_more_samples_than_rows_takes_all(tmp_path: Path):
    config = DataConfig(dataset=folder(tmp_path, train=30, validation=5, test=6), train_samples=31, test_samples=6)
    splits = load_splits(config)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (30, 5, 6)


def test_pairs_and_other_column_names(tmp_path: Path):
    (tmp_path / "d.csv").write_text("a,b,y\nhi,there,yes\nno,way,no\n" * 10)
    config = DataConfig(
        dataset=str(tmp_path / "d.csv"),
        text_column="a",
        text_pair_column="b",
        label_column="y",
        validation_split=None,
        test_split=None,
    )
    # the header is repeated ten times: a row like any other, with a label of its own
    splits = load_splits(config)
    assert splits.train.column_names == ["text", "text_pair", "label"]
    assert splits.label_names == ("no", "y", "yes")
    assert {"text": "hi", "text_pair": "there", "label": 2} in splits.train.to_list()


def test_an_absent_split_lists_those_present(tmp_path: Path):
    with pytest.raises(MismatchError, match="no split 'validation'") as caught:
        load_splits(DataConfig(dataset=folder(tmp_path, train=5, valid=5, test=5)))
    assert "Did you mean 'valid'? Splits present: test, train, valid." in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("role", ["train", "validation", "test"])
def test_an_empty_split_is_named(tmp_path: Path, role: str):
    """The stock stack says `num_samples should be a positive integer value`."""
    folder(tmp_path, train=5, validation=5, test=5)
    (tmp_path / f"{role}.csv").write_text("text,label\n")
    with pytest.raises(MismatchError, match=f"{role}: 0 rows in split '{role}' of {tmp_path.name}"):
        load_splits(DataConfig(dataset=str(tmp_path)))


def test_one_row_cannot_be_cut(tmp_path: Path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    Dataset.from_dict({"text": ["x"], "label": [0]}, features=features).to_parquet(tmp_path / "d.parquet")
    with pytest.raises(MismatchError, match=r"train: 0 rows after a tenth was cut off for validation \(from 1 in split"):
        load_splits(DataConfig(dataset=str(tmp_path / "d.parquet"), validation_split=None, test_split=None))


def test_a_null_text_is_refused_with_its_row(tmp_path: Path):
    """A tokenizer turns None into an error without a row, or into the text `None`."""
    lines = ['{"text": "a", "label": 0}', '{"text": "b", "label": 1}', '{"label": 1}']
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    config = DataConfig(dataset=str(tmp_path / "d.jsonl"), validation_split=None, test_split=None)
    with pytest.raises(MismatchError, match=r"split 'train' of d.jsonl: row 2: text is null"):
        load_splits(config)
    (tmp_path / "d.csv").write_text("text,label\na,0\nb,\n")
    with pytest.raises(MismatchError, match="row 1: label is null"):
        load_splits(config.model_copy(update={"dataset": str(tmp_path / "d.csv")}))


def test_a_stray_label_is_found_also_where_no_sample_draws_it(tmp_path: Path):
    """Checked after drawing, it would appear with the next seed."""
    (tmp_path / "d.csv").write_text("text,label\n" + "a,0\nb,1\n" * 50 + "c,7\n")
    with pytest.raises(MismatchError, match=r"row 100: label 7 not in 0\.\.1"):
        load_splits(DataConfig(dataset=str(tmp_path / "d.csv"), validation_split=None, test_split=None, train_samples=2))


@pytest.mark.parametrize("key", ["validation_split", "test_split"])
def test_measuring_on_the_training_split_is_refused(key: str):
    with pytest.raises(RecipeError, match=f"{key} is the training split 'train'"):
        DataConfig(dataset="d", **{key: "train"})


def test_the_source_has_a_fingerprint_of_what_is_used(tmp_path: Path):
    splits = load_splits(DataConfig(dataset=folder(tmp_path, train=9, validation=5, test=5), train_samples=4))
    assert splits.source["fingerprint of train"] == fingerprint(splits.train)
    assert set(splits.source) >= {"dataset", "sha256 of test.csv", "fingerprint of validation", "fingerprint of test"}
    assert str(tmp_path.parent) not in str(splits.source)


@pytest.mark.parametrize(
    ("dataset", "kind", "message"),
    [
        ("none.csv", RecipeError, "no file 'none.csv' here"),
        ("../up/none.csv", RecipeError, "no file 'none.csv' here"),
        ("/absolute/none", RecipeError, "neither a file or folder here nor the id"),
        ("https://example.org/x", RecipeError, "neither a file"),
        ("hf://datasets/a/b", RecipeError, "neither a file"),
        ("buckets/a/b", RecipeError, "neither a file"),
        ("csv", RecipeError, "neither a file"),
        ("imagefolder", RecipeError, "neither a file"),
        ("x" * 5000, RecipeError, "neither a file"),
        ("~/x", RecipeError, "neither a file"),
        ("package:none", RecipeError, "unknown name 'none'. Known: simple_icd_10_cm"),
        ("package:simple_icd_10", RecipeError, "Did you mean 'simple_icd_10_cm'?"),
        ("org/none", ResourceError, "data set org/none is not in the cache"),
    ],
)
@pytest.mark.parametrize("download", [True, False])
def test_what_is_not_there_is_named(dataset: str, kind: type, message: str, download: bool):
    """A word that is also a loader's name would make `datasets` read whatever lies in the current folder."""
    with pytest.raises(kind) as caught:
        load_splits(DataConfig(dataset=dataset), download=download)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_options_of_the_hub_are_refused_for_packages():
    with pytest.raises(RecipeError, match=r"data.revision: would be ignored"):
        load_splits(DataConfig(dataset="package:simple_icd_10_cm", revision="main"))
