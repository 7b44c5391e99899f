"""Written texts, against values worked out by hand."""

import pytest
from datasets import Dataset

from hf_shrink.errors import MismatchError
from hf_shrink.measurement.metrics import score
from hf_shrink.measurement.text_metrics import ChrF, RougeL
from hf_shrink.measurement.written import judge_written
from tests.tiny import tiny_tokenizer


def test_rouge_l_by_hand():
    """Common subsequence "the house is" of 4 and 5 words: F1 2 * 3 / 9. Order counts: "b a" against "a b" shares one word."""
    assert score(RougeL, ["The house, is red"], ["the old house is blue"]) == pytest.approx(6 / 9)
    assert score(RougeL, ["b a", "", "Über 3"], ["a b", "a", "über 3"]) == pytest.approx((0.5 + 0 + 1) / 3)


def test_chrf_by_hand():
    """ "abc" against "abd": 2 of 3 letters, 1 of 2 pairs, 0 of 1 triples, both for precision and recall: 7/6 / 3."""
    assert score(ChrF, ["a bc"], ["ab d"]) == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert score(ChrF, ["red house"], ["red house"]) == 1.0 and score(ChrF, ["xx"], ["yy"]) == 0.0


def test_chrf_weighs_recall_twice():
    """Letters: 1 of 1 said, 1 of 2 there; no order has n-grams on both sides beyond. F2 = 5 * 1 * 0.5 / (4 * 1 + 0.5)."""
    assert score(ChrF, ["a"], ["ab"]) == pytest.approx(2.5 / 4.5)


def test_chrf_is_of_all_texts_together():
    """A mean over texts would be (1 + 0) / 2; of 5 letters 1 is right, and only the second text has longer n-grams."""
    orders = [1 / 5, 0, 0, 0]
    assert score(ChrF, ["a", "xxxx"], ["a", "yyyy"]) == pytest.approx(sum(orders) / 4)


def test_rows_for_training_cannot_be_judged():
    rows = Dataset.from_dict({"input_ids": [[2, 3]], "labels": [[2, 3]]})
    with pytest.raises(MismatchError, match="no column 'target'"):
        judge_written(None, rows, tiny_tokenizer())
