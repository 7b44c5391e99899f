"""Entities. What these prevent: an F1 over tags, which a model that says O everywhere does well in."""

import numpy as np
import pytest

from hf_shrink.errors import MismatchError
from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.measurement.entities import entities, is_scheme
from hf_shrink.measurement.metrics import EntityF1, score
from hf_shrink.measurement.quality import quality
from hf_shrink.measurement.subjects import Bench, Subject
from hf_shrink.measurement.tags import EntityTags, Tags


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-PER I-PER O B-LOC", {(0, 1, "PER"), (3, 3, "LOC")}),
        ("B-PER B-PER I-PER", {(0, 0, "PER"), (1, 2, "PER")}),
        ("I-PER I-PER", {(0, 1, "PER")}),
        ("B-PER I-LOC I-LOC", {(0, 0, "PER"), (1, 2, "LOC")}),
        ("O I-PER O I-PER", {(1, 1, "PER"), (3, 3, "PER")}),
        ("B-PER I-PER E-PER E-PER", {(0, 2, "PER"), (3, 3, "PER")}),
        ("S-PER I-PER", {(0, 0, "PER"), (1, 1, "PER")}),
        ("B-PER L-PER U-LOC", {(0, 1, "PER"), (2, 2, "LOC")}),
        ("B-PER O O I-PER", {(0, 0, "PER"), (3, 3, "PER")}),
        ("NOUN NOUN VERB O", {(0, 1, "NOUN"), (2, 2, "VERB")}),
        ("O O", set()),
        ("B-ORG-X I-ORG-X", {(0, 1, "ORG-X")}),
    ],
)
def test_entities_by_hand(tags: str, found: set):
    """Worked out from the rules of conlleval: where an entity begins, and where the one before it ends."""
    assert entities(tags.split()) == found


def test_the_example_of_seqeval_s_own_documentation():
    """One of two entities is right: its README gives 0.50."""
    true = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    said = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    assert score(EntityF1, said, true) == pytest.approx(0.5)


def test_saying_nothing_scores_nothing_and_no_entities_at_all_is_no_division():
    assert score(EntityF1, [["O", "O"]], [["B-PER", "O"]]) == 0.0
    assert score(EntityF1, [["O"]], [["O"]]) == 0.0


def test_parts_of_speech_are_no_entities():
    assert (
        is_scheme(("O", "B-PER")) and is_scheme(("U-X", "O")) and not is_scheme(("NOUN", "VERB")) and not is_scheme(("B", "I"))
    )


NAMES = ("B-PER", "I-PER", "O")


def answers(predicted: list[int]) -> EntityTags:
    labels = [0, 1, 2, 0, 2, 2] * 10
    return EntityTags(np.array(predicted * 10), np.array(labels), np.full(20, 3), NAMES)


def test_scores_are_paired_over_sentences():
    """Of two entities in six words one is found: F1 is 2 * 1 / (1 + 2)."""
    base, own = answers([0, 1, 2, 0, 2, 2]), answers([0, 1, 2, 2, 2, 2])
    bench = Bench((Subject("a", predictions=base), Subject("b", predictions=own)), MeasurementConfig(bootstrap=200))
    found = {m.name: m for m in quality(bench)[1]}
    assert found["entity_f1"].value == pytest.approx(200 / 3) and found["tag_accuracy"].value == pytest.approx(500 / 6)
    low, high = found["entity_f1"].interval
    assert low < found["entity_f1"].value < high
    assert found["entity_f1_difference"].value == pytest.approx(-100 / 3)
    assert "20 sentences, 60 words" in found["entity_f1"].setting


def test_answers_that_do_not_fit_are_refused():
    with pytest.raises(MismatchError):
        Tags(np.array([1]), np.array([1, 2]), np.array([2]), NAMES)
    with pytest.raises(MismatchError):
        Tags(np.array([1, 2]), np.array([1, 2]), np.array([1]), NAMES)
