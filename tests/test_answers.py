"""Answers are matched by the names of the classes."""

import json
from pathlib import Path

import numpy as np
import pytest

from hf_shrink.answers import by_name
from hf_shrink.errors import MismatchError
from hf_shrink.measurement.predict import predict
from tests.tiny import COLOURS, colour_tokens, tiny_classifier, tiny_tokenizer


def saved(folder: Path, labels: tuple[str, ...] = COLOURS) -> Path:
    tiny_classifier(labels=labels).save_pretrained(folder)
    return folder


def test_a_model_whose_classes_stand_in_another_order_is_judged_by_their_names(tmp_path: Path):
    """By index a perfect teacher has an accuracy of chance, and every student recovers more than all of it."""
    data, tokenizer = colour_tokens(12), tiny_tokenizer()
    found = by_name(saved(tmp_path, COLOURS[::-1]), COLOURS, data, tokenizer, batch_size=4)
    logits = predict(tiny_classifier(), data, tokenizer)  # the same weights, whatever the names
    by_hand = [COLOURS.index(COLOURS[::-1][i]) for i in logits.argmax(axis=-1)]
    assert found is not None and found.predicted.tolist() == by_hand
    assert set(by_hand) != {1} and np.array_equal(found.labels, data["labels"])


@pytest.mark.parametrize("names", [COLOURS, ("LABEL_0", "LABEL_1", "LABEL_2")])
def test_the_same_order_and_data_without_names_are_left_to_the_measurement(names: tuple[str, ...], tmp_path: Path):
    assert by_name(saved(tmp_path), names, colour_tokens(3), tiny_tokenizer(), batch_size=2) is None


@pytest.mark.parametrize("names", [("red", "green", "pink"), ("red", "green")])
def test_other_classes_are_refused(names: tuple[str, ...], tmp_path: Path):
    with pytest.raises(MismatchError, match="red, green, blue"):
        by_name(saved(tmp_path), names, colour_tokens(3), tiny_tokenizer(), batch_size=2)


def test_a_model_without_its_head_is_left_to_the_measurement_which_refuses_it(tmp_path: Path):
    saved(tmp_path, COLOURS[::-1])
    tiny_classifier().base_model.save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    assert by_name(tmp_path / "base", COLOURS, colour_tokens(3), tiny_tokenizer(), batch_size=2) is None
