"""Label sets and numbers against scikit-learn and numpy: a metric of our own that is slightly another one fools everybody."""

import numpy as np
import pytest

from hf_shrink.errors import MismatchError
from hf_shrink.measurement.config import MeasurementConfig
from hf_shrink.measurement.estimates import Estimates, correlation, midranks
from hf_shrink.measurement.label_sets import LabelSets
from hf_shrink.measurement.metrics import LabelF1, MeanSquaredError, Pearson, Spearman, score
from hf_shrink.measurement.quality import quality
from hf_shrink.measurement.scores import scores_of
from hf_shrink.measurement.subjects import Bench, Subject

GENERATOR = np.random.default_rng(0)
TRUE = GENERATOR.random((40, 5)) < 0.4
SAID = TRUE ^ (GENERATOR.random((40, 5)) < 0.2)
X = GENERATOR.normal(size=50).round(1)
Y = (X + GENERATOR.normal(size=50)).round(1)


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_f1_of_label_sets_is_scikit_learn_s(average: str):
    metrics = pytest.importorskip("sklearn.metrics")
    assert score(LabelF1, SAID.astype(int), TRUE.astype(int), average=average) == pytest.approx(
        metrics.f1_score(TRUE, SAID, average=average)
    )


def test_a_label_that_never_occurs_takes_no_part_in_the_mean():
    """scikit-learn would count it as 0 and warn."""
    assert score(LabelF1, [[1, 0], [1, 0]], [[1, 0], [1, 0]], average="macro") == 1.0


def test_pearson_is_numpy_s_and_spearman_is_pearson_of_ranks():
    assert score(Pearson, X, Y) == pytest.approx(np.corrcoef(X, Y)[0, 1])
    ranks = [np.array([(v < value).sum() + ((v == value).sum() + 1) / 2 for value in v]) for v in (X, Y)]
    assert score(Spearman, X, Y) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert score(Spearman, [1.0, 2.0, 3.0, 4.0], [1.0, 8.0, 27.0, 64.0]) == pytest.approx(1.0)
    assert score(MeanSquaredError, [1.0, 2.0], [2.0, 4.0]) == pytest.approx(2.5)


def test_a_model_that_always_says_the_same_follows_nothing():
    """0 / 0 is no number, and a report with one could not be read again."""
    assert score(Pearson, [0.3] * 4, [1.0, 2.0, 3.0, 4.0]) == 0.0 == score(Spearman, [0.3] * 4, [1.0, 2.0, 3.0, 4.0])


def test_weights_are_repetitions():
    """An interval must come from the statistic of the drawn sample, ranks drawn again included."""
    weights = GENERATOR.integers(0, 4, size=(3, 50)).astype(np.float32)
    drawn = [(np.repeat(X, w.astype(int)), np.repeat(Y, w.astype(int))) for w in weights]
    np.testing.assert_allclose(correlation(X, Y, weights), [np.corrcoef(*pair)[0, 1] for pair in drawn], rtol=1e-5)
    by_weight = correlation(midranks(X, weights), midranks(Y, weights), weights)
    np.testing.assert_allclose(by_weight, [score(Spearman, *pair) for pair in drawn], rtol=1e-5)


@pytest.mark.parametrize("answers", [LabelSets(SAID, TRUE), Estimates(X, Y)], ids=lambda a: type(a).__name__)
def test_every_score_weighted_by_ones_is_the_whole(answers):
    """The interval would be around another number than the one it stands beside."""
    entries = scores_of(answers)
    assert len(entries) >= 2
    for name, entry in entries.items():
        assert entry.weighted(answers, np.ones((1, len(answers))))[0] == pytest.approx(entry.whole(answers)), name


def test_of_an_error_less_is_better():
    worse, better = Estimates(Y + 2, Y), Estimates(Y + 1, Y)
    bench = Bench((Subject("a", predictions=better), Subject("b", predictions=worse)), MeasurementConfig(bootstrap=100))
    found = {m.name: m for m in quality(bench)[1]}
    assert found["mse"].value == pytest.approx(4.0) and found["mse_ratio"].value == pytest.approx(4.0)
    assert "mse_recovery" not in found and found["pearson"].value == pytest.approx(100.0)


def test_answers_that_do_not_fit_are_refused():
    with pytest.raises(MismatchError):
        LabelSets(SAID, TRUE[:, :2])
    with pytest.raises(MismatchError):
        Estimates(X, Y[:3])
    with pytest.raises(MismatchError):
        Estimates(np.zeros(0), np.zeros(0))
