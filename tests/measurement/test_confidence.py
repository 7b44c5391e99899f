"""Confidence. What these prevent: a model that is sure of everything, and a calibration error that means nothing."""

import math

import numpy as np
import pytest

from hf_shrink.measurement.confidence import bins_of, calibration_error, confidence, divergence, probabilities, reliability
from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.measurement.measure import measure_all
from hf_shrink.measurement.predictions import Predictions
from hf_shrink.measurement.subjects import Bench, Subject
from hf_shrink.measurement.tags import Tags
from hf_shrink.measurement.values import Report
from tests.tiny import colour_tokens, tiny_classifier, tiny_tokenizer

CONFIG = MeasurementConfig(bootstrap=200, memory=False, batch_sizes=(1,), length=8, runs=3)


def logits_of(probability: float, predicted: list[int]) -> np.ndarray:
    """Two classes, the predicted one with this probability."""
    sure = math.log(probability / (1 - probability))
    return np.array([[sure, 0.0] if p == 0 else [0.0, sure] for p in predicted], dtype=np.float32)


def answers(probability: float, right: int, rows: int) -> Predictions:
    predicted = [i % 2 for i in range(rows)]
    return Predictions.from_logits(
        logits_of(probability, predicted), [p if i < right else 1 - p for i, p in enumerate(predicted)]
    )


def whole(own: Predictions | Tags) -> float:
    return float(calibration_error(own, probabilities(own.logits), np.ones((1, len(own))))[0])


@pytest.mark.parametrize(("probability", "right"), [(0.8, 40), (0.8, 20), (0.6, 50), (0.99, 0)])
def test_of_one_confidence_the_error_is_its_distance_from_the_accuracy(probability, right):
    """The law of one bin: |accuracy - confidence|, and 0 where 80 % sure is right 80 times of 100."""
    assert whole(answers(probability, right, 50)) == pytest.approx(abs(right / 50 - probability), abs=1e-6)


def test_a_calibrated_construction_has_no_error_though_its_answers_are_often_wrong():
    """Confusing it with the accuracy would punish a model that says it does not know."""
    parts = [(0.6, 60), (0.75, 75), (0.9, 90)]
    each = [answers(p, right, 100) for p, right in parts]
    joined = Predictions.from_logits(
        np.concatenate([part.logits for part in each]), np.concatenate([part.labels for part in each])
    )
    assert whole(joined) == pytest.approx(0, abs=1e-6) and joined.correct.mean() == 0.75
    assert [b.count for b in reliability(joined)] == [100, 100, 100]
    assert all(
        b.confidence == pytest.approx(b.accuracy, abs=1e-6) and b.low < b.confidence <= b.high for b in reliability(joined)
    )


def test_errors_of_two_bins_do_not_cancel():
    """Over-sure here and under-sure there is the mean of both distances, not their sum: (0.2 + 0.3) / 2."""
    over, under = answers(0.9, 7, 10), answers(0.6, 9, 10)
    both = Predictions.from_logits(np.concatenate([over.logits, under.logits]), np.concatenate([over.labels, under.labels]))
    assert whole(both) == pytest.approx(0.25, abs=1e-6)


def test_bins_are_those_of_the_paper():
    """Above m/15 and up to (m+1)/15: a probability of 1 is in the last one."""
    assert bins_of(np.array([1e-9, 1 / 15, 1 / 15 + 1e-9, 0.5, 14.5 / 15, 1.0])).tolist() == [0, 0, 1, 7, 14, 14]


def test_divergence_by_hand_and_in_its_direction():
    """KL(teacher || model) of (0.9, 0.1) and (0.5, 0.5): 0.9 ln 1.8 + 0.1 ln 0.2. The other direction gives 0.511."""
    teacher, model = answers(0.9, 1, 1), answers(0.5, 1, 1)
    assert divergence(model, teacher)[0] == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), abs=1e-6)
    assert divergence(teacher, teacher).tolist() == [0.0]
    assert divergence(Predictions.of([0], [0]), teacher) is None, "a floor has answers and no probabilities"


def test_weights_stand_for_repeated_samples():
    """An interval of other samples than those that were drawn would look just as good."""
    generator = np.random.default_rng(0)
    own = Predictions.from_logits(generator.normal(size=(30, 4)).astype(np.float32), generator.integers(4, size=30))
    weights = generator.integers(0, 4, size=(1, 30))
    twice = np.repeat(np.arange(30), weights[0])
    drawn = Predictions.from_logits(own.logits[twice], own.labels[twice])
    assert calibration_error(own, probabilities(own.logits), weights)[0] == pytest.approx(whole(drawn), abs=1e-9)


def test_words_count_alike_whatever_sentence_they_are_in():
    """A mean of sentences would let a word of a short one count more."""
    flat = answers(0.8, 3, 6)
    tags = Tags(flat.predicted, flat.labels, np.array([1, 5]), ("O", "X"), flat.logits)
    assert whole(tags) == pytest.approx(whole(flat))
    (found,) = confidence(Bench((Subject("a", predictions=tags),), CONFIG))
    assert {m.name: m.value for m in found} == {
        "confidence": pytest.approx(80, abs=1e-4),
        "calibration_error": pytest.approx(30, abs=1e-4),
    }


def test_a_model_is_set_beside_its_baseline_on_the_same_samples_only():
    teacher, other = answers(0.9, 9, 10), answers(0.6, 8, 12)
    own = Predictions.from_logits(logits_of(0.6, [i % 2 for i in range(10)]), teacher.labels)
    subjects = [Subject(str(i), predictions=each) for i, each in enumerate((teacher, own, other))]
    first, second, third = confidence(Bench(tuple(subjects), CONFIG))
    assert [m.name for m in first] == [m.name for m in third] == ["confidence", "calibration_error"]
    found = {m.name: m for m in second}
    assert found["agreement"].value == 100 and found["agreement"].interval == (100, 100)
    by_hand = 0.9 * math.log(0.9 / 0.6) + 0.1 * math.log(0.1 / 0.4)
    assert found["divergence"].value == pytest.approx(by_hand, abs=1e-6) and found["divergence"].unit == "nats"
    low, high = found["divergence"].interval
    assert low == pytest.approx(high, abs=1e-6), "every row is as far"


def test_reports_keep_the_bins_and_read_them_back():
    """A plot of a finished run would have nothing to draw."""
    reports = measure_all(
        [Subject("a", model=tiny_classifier())], dataset=colour_tokens(20), tokenizer=tiny_tokenizer(), config=CONFIG
    )
    bins = reports[0].reliability
    assert sum(b.count for b in bins) == 20 and Report.from_stage(reports[0].to_stage()) == reports[0]
    error = sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / 20
    assert 100 * error == pytest.approx(reports[0].value("calibration_error")), "two ways to the same number"
    assert "reliability" not in Report(name="x").to_stage()
