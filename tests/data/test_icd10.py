"""The quickstart's data. What these prevent: a test split that training has seen, which makes every number too good."""

import subprocess
import sys
from collections import Counter

import pytest
from datasets import Dataset

from hf_shrink.data import icd10
from hf_shrink.data.config import DataConfig
from hf_shrink.data.fingerprints import fingerprint
from hf_shrink.data.splits import Splits, load_splits
from hf_shrink.errors import ResourceError

icd = pytest.importorskip("simple_icd_10_cm")
NONE = {"train": None, "validation": None, "test": None}


@pytest.fixture(scope="module")
def splits() -> dict[str, Dataset]:
    return icd10.icd10_chapters(0, NONE)


@pytest.fixture(scope="module")
def categories() -> dict[str, set[str]]:
    """Text -> three-character categories that have it as a leaf, from the package itself."""
    found: dict[str, set[str]] = {}
    for code in icd.get_all_codes():
        if icd.is_leaf(code):
            found.setdefault(" ".join(icd.get_description(code).split()), set()).add(code[:3])
    return found


def test_sizes_are_the_promised_ones(splits: dict[str, Dataset]):
    assert {name: len(split) for name, split in splits.items()} == {"train": 5000, "validation": 600, "test": 1600}


def test_no_category_and_no_text_is_in_two_splits(splits: dict[str, Dataset], categories: dict[str, set[str]]):
    """Leaves of one category differ in a word such as left or right."""
    seen = {name: set().union(*(categories[text] for text in split["text"])) for name, split in splits.items()}
    texts = {name: {text.casefold() for text in split["text"]} for name, split in splits.items()}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not seen[one] & seen[other]
        assert not texts[one] & texts[other]
    assert all(len(texts[name]) == len(split) for name, split in splits.items()), "a text is there twice"
    assert len(seen["test"]) > 300, "too few categories to say anything"


def test_every_label_is_the_chapter_of_the_text(splits: dict[str, Dataset], categories: dict[str, set[str]]):
    names = splits["train"].features["label"].names
    for split in splits.values():
        for text, label in zip(split["text"], split["label"], strict=True):
            chapters = {icd.get_description(icd.get_ancestors(category)[-1]) for category in categories[text]}
            assert any(chapter.startswith(f"{names[label]} (") for chapter in chapters)


def test_names_are_the_21_chapters_in_order_without_their_ranges(splits: dict[str, Dataset]):
    names = splits["train"].features["label"].names
    assert len(names) == 21
    assert names[1] == "Neoplasms"
    assert names[-1] == "Factors influencing health status and contact with health services"
    assert not any("(" in name for name in names)


def test_chapters_are_balanced_as_far_as_they_go(splits: dict[str, Dataset]):
    for name, split in splits.items():
        counts = sorted(Counter(split["label"]).values())
        assert len(counts) == 21
        assert counts[-1] - counts[3] <= 1, f"{name}: only small chapters may have fewer rows"
        assert counts[0] >= 0.8 * counts[-1]


def test_sizes_are_overridden_without_moving_a_category(splits: dict[str, Dataset]):
    """A smaller trial run must not train on what the real one is measured with."""
    small = icd10.icd10_chapters(0, {"train": 105, "validation": 21, "test": 42})
    assert {name: len(split) for name, split in small.items()} == {"train": 105, "validation": 21, "test": 42}
    for name, split in small.items():
        assert set(split["text"]) <= set(splits[name]["text"])
        assert set(Counter(split["label"]).values()) == {len(split) // 21}


def test_asking_for_more_than_there_is_gives_all_there_is():
    splits = icd10.icd10_chapters(0, {"train": 10**6, "validation": 10**6, "test": 10**6})
    assert 70_000 < sum(map(len, splits.values())) < 74_736


def test_another_seed_draws_other_categories(splits: dict[str, Dataset]):
    other = icd10.icd10_chapters(1, NONE)
    assert set(other["test"]["text"]) & set(splits["train"]["text"])


def test_another_process_makes_the_same_rows_in_the_same_order(splits: dict[str, Dataset]):
    """Python hashes text anew in every process: an order that leans on a set differs from run to run."""
    code = "from hf_shrink.data.icd10 import icd10_chapters; from hf_shrink.data.fingerprints import fingerprint; "
    code += "print(*[fingerprint(split) for split in icd10_chapters(0, {}).values()])"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=240).stdout
    assert printed.split() == [fingerprint(split) for split in splits.values()]


def test_it_is_loaded_as_a_data_set_like_any_other():
    splits = load_splits(DataConfig(dataset="package:simple_icd_10_cm", train_samples=210, test_split=None))
    assert isinstance(splits, Splits)
    assert (len(splits.train), len(splits.validation)) == (210, 600)
    assert splits.source["dataset"] == "package:simple_icd_10_cm"
    assert splits.source["version"].startswith("1.")


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "simple_icd_10_cm", None)
    with pytest.raises(ResourceError, match=r"pip install 'hf_shrink\[demo\]'"):
        icd10.icd10_chapters(0, NONE)


def test_quotas_fill_small_classes_first():
    """By hand: 10 from classes of 1, 2 and 20 is 1 + 2 + 7."""
    classes = [[["a"]], [["b", "c"]], [[str(i) for i in range(20)]]]
    assert [len(texts) for texts in icd10._balanced(classes, 10, 0)] == [1, 2, 7]
    assert [len(texts) for texts in icd10._balanced(classes, 100, 0)] == [1, 2, 20]
    assert [len(texts) for texts in icd10._balanced(classes, 2, 0)] == [1, 1, 0]
