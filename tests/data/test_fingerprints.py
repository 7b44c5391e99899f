"""Fingerprints. What these prevent: a resumed run on other rows, and one refused although nothing changed."""

import subprocess
import sys

import pytest
from datasets import Dataset, concatenate_datasets

from hf_shrink.data.fingerprints import fingerprint

BASE = {"text": ["a", "b", "c"], "label": [0, 1, 0]}


def of(columns: dict) -> str:
    return fingerprint(Dataset.from_dict(columns))


@pytest.mark.parametrize(
    "other",
    [
        {"text": ["b", "a", "c"], "label": [1, 0, 0]},
        {"text": ["a", "b", "c"], "label": [0, 1, 1]},
        {"text": ["a", "b"], "label": [0, 1]},
        {"label": [0, 1, 0], "text": ["a", "b", "c"]},
        {"texts": ["a", "b", "c"], "label": [0, 1, 0]},
        {"text": ["a", "b", "c"], "label": ["0", "1", "0"]},
        {"text": ["a", "b", "c"], "label": [0.0, 1.0, 0.0]},
        {"text": ["ab", "", "c"], "label": [0, 1, 0]},
    ],
)
def test_other_content_has_another_fingerprint(other: dict):
    assert of(other) != of(BASE)


def test_equal_content_has_the_same_however_it_is_stored():
    """The library's own fingerprint depends on the history of the object, and is random for some histories."""
    data = Dataset.from_dict({"text": [str(i) for i in range(2500)], "label": list(range(2500))})
    halves = concatenate_datasets([data.select(range(1300)), data.select(range(1300, 2500))])
    shuffled_back = data.select(list(range(2499, -1, -1))).select(list(range(2499, -1, -1)))
    formatted = data.with_format("torch")
    assert {fingerprint(other) for other in (halves, shuffled_back, formatted)} == {fingerprint(data)}


def test_it_is_the_same_in_another_process():
    code = "from datasets import Dataset; from hf_shrink.data.fingerprints import fingerprint; "
    code += f"print(fingerprint(Dataset.from_dict({BASE!r})))"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120).stdout
    assert printed.strip() == of(BASE)


def test_lists_of_tokens_can_be_hashed():
    assert of({"input_ids": [[1, 2], [3]]}) != of({"input_ids": [[1], [2, 3]]})
