"""Predictions in the right order, and scores with paired intervals."""

import numpy as np
import pytest
import torch

from hf_shrink.errors import MismatchError, NonFiniteError
from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.measurement.predict import predict
from hf_shrink.measurement.predictions import Predictions, judge_classes
from hf_shrink.measurement.quality import quality
from hf_shrink.measurement.subjects import Bench, Subject
from tests.tiny import colour_tokens, tiny_classifier, tiny_tokenizer

CONFIG = MeasurementConfig(bootstrap=500)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_logits_come_in_the_order_of_the_data(family):
    """Sorting by length saves padding; forgetting to sort back scores every sample against another one's label."""
    model, data, tokenizer = tiny_classifier(family), colour_tokens(23), tiny_tokenizer()
    lengths = [len(ids) for ids in data["input_ids"]]
    assert lengths != sorted(lengths)
    found = predict(model, data, tokenizer, batch_size=4)
    with torch.no_grad():
        one_by_one = [model(input_ids=torch.tensor([ids])).logits[0].numpy() for ids in data["input_ids"]]
    np.testing.assert_allclose(found, np.stack(one_by_one), atol=1e-5)


def test_a_model_in_training_mode_is_judged_without_dropout_and_goes_on_training():
    """With dropout left on, two judgements of one model differ."""
    model, data, tokenizer = tiny_classifier("bert").train(), colour_tokens(10), tiny_tokenizer()
    first, second = (predict(model, data, tokenizer) for _ in range(2))
    assert np.array_equal(first, second) and model.training


def test_nan_logits_stop_the_judgement():
    """argmax of NaNs is a class like any other: a broken model would get an accuracy."""
    model = tiny_classifier("bert")
    with torch.no_grad():
        model.classifier.bias[1] = float("nan")
    with pytest.raises(NonFiniteError, match="10 of 10 samples"):
        predict(model, colour_tokens(10), tiny_tokenizer())


def test_data_that_do_not_fit_the_model_are_refused():
    """A label that the model cannot predict silently lowers the accuracy."""
    model, tokenizer = tiny_classifier("bert", labels=("red", "green")), tiny_tokenizer()
    with pytest.raises(MismatchError, match="labels run from 0 to 2, but the model has 2 classes"):
        judge_classes(model, colour_tokens(20), tokenizer)
    with pytest.raises(MismatchError, match="labels"):
        judge_classes(model, colour_tokens(5).remove_columns("labels"), tokenizer)
    with pytest.raises(MismatchError, match="input_ids"):
        predict(model, colour_tokens(5).remove_columns("input_ids"), tokenizer)
    with pytest.raises(MismatchError, match="no samples"):
        predict(model, colour_tokens(5).select([]), tokenizer)
    tokenizer.pad_token = None
    with pytest.raises(MismatchError, match="pad"):
        predict(model, colour_tokens(5), tokenizer)


def answers(correct: np.ndarray) -> Predictions:
    labels = np.arange(len(correct)) % 3
    return Predictions.of(np.where(correct, labels, (labels + 1) % 3), labels)


def test_scores_differences_and_recoveries_are_those_of_the_samples():
    """80 of 100 right against 90 of 100: 10 points below, 88.9% recovered."""
    base, own = answers(np.arange(100) < 90), answers(np.arange(100) < 80)
    bench = Bench(
        (Subject("floor"), Subject("teacher", predictions=base), Subject("student", predictions=own)), CONFIG, baseline=1
    )
    floor, teacher, student = quality(bench)
    assert floor == []
    assert [m.name for m in teacher] == ["accuracy", "macro_f1", "macro_precision", "macro_recall", "matthews"]
    values = {m.name: m for m in student}
    assert values["accuracy"].value == pytest.approx(80.0) and values["accuracy"].unit == "%"
    assert values["accuracy_difference"].value == pytest.approx(-10.0)
    assert values["accuracy_recovery"].value == pytest.approx(100 * 80 / 90)
    for name, measurement in values.items():
        low, high = measurement.interval
        assert low < measurement.value < high, name
    low, high = values["accuracy_difference"].interval
    half = 100 * 1.96 * np.sqrt(0.1 * 0.9 / 100)  # ten of a hundred samples differ, all in one direction
    assert low == pytest.approx(-10 - half, abs=1.5) and high == pytest.approx(-10 + half, abs=1.5)


def test_a_model_against_itself_differs_by_nothing_at_all():
    """Only paired draws give an interval of width zero here."""
    same = answers(np.arange(60) < 45)
    _, own = quality(Bench((Subject("a", predictions=same), Subject("b", predictions=same)), CONFIG))
    found = {m.name: m for m in own}
    assert found["accuracy_difference"].value == 0.0 and found["accuracy_difference"].interval == (0.0, 0.0)
    assert found["macro_f1_recovery"].interval == (100.0, 100.0)


def test_other_samples_are_not_compared():
    """A difference between two test sets is no difference between two models."""
    short, long = answers(np.ones(10, bool)), answers(np.ones(11, bool))
    _, own = quality(Bench((Subject("a", predictions=short), Subject("b", predictions=long)), CONFIG))
    assert [m.name for m in own] == ["accuracy", "macro_f1", "macro_precision", "macro_recall", "matthews"]


def test_a_baseline_that_is_never_right_leaves_no_recovery():
    """A division by zero would otherwise stop the whole measurement."""
    zero, own = answers(np.zeros(9, bool)), answers(np.ones(9, bool))
    names = [m.name for m in quality(Bench((Subject("a", predictions=zero), Subject("b", predictions=own)), CONFIG))[1]]
    assert "accuracy_difference" in names and "accuracy_recovery" not in names


def test_correctness_is_kept_sample_by_sample():
    assert answers(np.array([True, False, True])).correct.tolist() == [True, False, True]
    with pytest.raises(MismatchError):
        Predictions.of([1, 2], [1])
