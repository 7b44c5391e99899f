"""Answers to questions, against values worked out by hand."""

import numpy as np
import pytest
from datasets import Dataset

from hf_shrink.errors import MismatchError
from hf_shrink.measurement.metrics import score
from hf_shrink.measurement.spans import Spans, judge_spans, likeliest
from hf_shrink.measurement.text_metrics import AnswerF1, ExactMatch
from tests.tiny import tiny_tokenizer

SAID = ["The red  house!", "a tree", "bird", ""]
TRUE = [["red house"], ["the tree stone", "river"], ["cloud"], ["song"]]


def test_exact_match_and_f1_by_hand():
    """Row 2: words {tree} against {tree, stone}: precision 1, recall 1/2, F1 2/3."""
    assert score(ExactMatch, SAID, TRUE) == pytest.approx(1 / 4)
    assert score(AnswerF1, SAID, TRUE) == pytest.approx((1 + 2 / 3) / 4)
    spans = Spans(tuple(SAID), tuple(map(tuple, TRUE)))
    assert spans.matches.tolist() == [1, 0, 0, 0] and spans.overlaps.mean() == pytest.approx((1 + 2 / 3) / 4)


def test_words_count_as_often_as_they_stand():
    """F1 over sets would call "red red red" perfect."""
    assert score(AnswerF1, ["red red red"], [["red"]]) == pytest.approx(2 * 1 / (3 + 1))


def test_the_likeliest_piece_begins_before_it_ends_and_stays_inside():
    starts, ends = np.array([9.0, 1.0, 0.0, 5.0]), np.array([9.0, 4.0, 0.0, 0.0])
    inside = np.array([False, True, True, True])
    assert likeliest(starts, ends, inside) == (5.0, 1, 1)  # 3..1 would be 9, backwards; 0..0 is no context
    assert likeliest(starts, ends, np.array([True, True, True, True]))[1:] == (0, 0)
    assert likeliest(np.eye(40)[0], np.eye(40)[39], np.ones(40, dtype=bool))[0] == 1.0  # 40 tokens are too long


def test_rows_for_training_cannot_be_judged():
    rows = Dataset.from_dict({"input_ids": [[2, 3]], "start_positions": [0], "end_positions": [0]})
    with pytest.raises(MismatchError, match="no column 'example'"):
        judge_spans(None, rows, tiny_tokenizer())
