"""The shipped metrics against scikit-learn and by hand."""

import socket

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, precision_score, recall_score

from hf_shrink.measurement.metrics import Accuracy, MacroF1, MacroPrecision, MacroRecall, Matthews, macro_f1, matthews, score


def draw(seed: int, samples: int = 200, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=samples)
    predicted = np.where(generator.random(samples) < 0.6, labels, generator.integers(classes, size=samples))
    return predicted, labels


@pytest.mark.parametrize("seed", range(5))
def test_they_agree_with_scikit_learn(seed):
    """A macro F1 that averages over the wrong classes looks plausible at any value."""
    predicted, labels = draw(seed)
    labels[labels == 3] = 4  # a class that is only ever predicted
    assert score(Accuracy, predicted, labels) == pytest.approx(accuracy_score(labels, predicted), abs=1e-12)
    assert score(MacroF1, predicted, labels) == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-12)
    for metric, theirs in ((MacroPrecision, precision_score), (MacroRecall, recall_score)):
        expected = theirs(labels, predicted, average="macro", zero_division=0)
        assert score(metric, predicted, labels) == pytest.approx(expected, abs=1e-12)
    assert score(Matthews, predicted, labels) == pytest.approx(matthews_corrcoef(labels, predicted), abs=1e-12)
    draws = np.random.default_rng(seed).multinomial(len(labels), [1 / len(labels)] * len(labels), size=3)
    by_weight = [matthews_corrcoef(labels, predicted, sample_weight=row) for row in draws]
    assert matthews(predicted, labels, draws.astype(np.float32)) == pytest.approx(by_weight, abs=1e-9)


def test_macro_f1_by_hand():
    """Class 0: one hit of 2 said and 1 true, 2/3. Class 1: no hit. Class 2: perfect."""
    found = score(MacroF1, np.array([0, 0, 2]), np.array([0, 1, 2]))
    assert found == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_precision_recall_and_matthews_by_hand():
    """Said 0, 0, 2 of true 0, 1, 2. Matthews: 2 of 3 right, (2 * 3 - 3) / sqrt((9 - 5) (9 - 3))."""
    said, true = np.array([0, 0, 2]), np.array([0, 1, 2])
    assert score(MacroPrecision, said, true) == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert score(MacroRecall, said, true) == pytest.approx((1 + 0 + 1) / 3)
    assert score(Matthews, said, true) == pytest.approx(3 / 24**0.5)
    assert score(Matthews, np.zeros(3, int), true) == 0.0, "one side does not vary"


def test_a_class_that_a_draw_lacks_takes_no_part_in_it():
    """Counted as 0 it would pull every bootstrap draw of a rare class down."""
    predicted, labels = np.array([0, 1, 1]), np.array([0, 1, 1])
    weights = np.array([[3, 0, 0], [1, 1, 1]], dtype=np.float32)
    assert macro_f1(predicted, labels, weights).tolist() == [1.0, 1.0]


def test_they_need_no_network_and_leave_no_file(monkeypatch, tmp_path):
    """`evaluate.load` asks the Hub for a script and runs it; ours must work with no socket at all."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path / "cache"))
    assert score(Accuracy, np.array([1, 2]), np.array([1, 1])) == 0.5
    assert not (tmp_path / "cache").exists()
