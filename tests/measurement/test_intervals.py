"""Intervals against a second implementation and the normal approximation."""

import numpy as np
import pytest
from scipy import stats

from hf_shrink.measurement import intervals
from hf_shrink.measurement.intervals import draw_scores, interval, resamples


def test_each_resample_draws_as_many_samples_as_there_are():
    """Weights that do not add up scale the score of every draw."""
    blocks = list(resamples(50, 300))
    weights = np.concatenate(blocks)
    assert weights.shape == (300, 50) and (weights.sum(axis=1) == 50).all()
    assert 0.3 < (weights == 0).mean() < 0.43  # 1/e of the samples stay out of a draw


def test_the_same_seed_draws_the_same_samples_whatever_the_block(monkeypatch):
    """Paired comparisons rest on both models seeing the same draws."""
    whole = np.concatenate(list(resamples(40, 100, seed=3)))
    monkeypatch.setattr(intervals, "_CELLS", 40 * 7)
    pieces = list(resamples(40, 100, seed=3))
    assert len(pieces) == 15 and np.array_equal(np.concatenate(pieces), whole)
    assert not np.array_equal(np.concatenate(list(resamples(40, 100, seed=4))), whole)


@pytest.mark.parametrize("accuracy", [0.5, 0.8])
def test_an_accuracy_s_interval_is_near_the_normal_approximation(accuracy):
    """An interval of the wrong width makes noise look like a gain."""
    samples = 1000
    correct = np.arange(samples) < accuracy * samples
    low, high = interval(draw_scores([lambda w: w @ correct / samples], samples, 4000)[0])
    half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / samples)
    assert low == pytest.approx(accuracy - half, abs=0.003) and high == pytest.approx(accuracy + half, abs=0.003)


def test_a_paired_interval_agrees_with_scipy_and_is_narrower_than_an_unpaired_one():
    """Two models fail on the same hard samples: unpaired, a real difference drowns."""
    generator = np.random.default_rng(0)
    first = generator.random(400) < 0.8
    second = np.where(generator.random(400) < 0.9, first, ~first)
    scores = draw_scores([lambda w: w @ first / 400, lambda w: w @ second / 400], 400, 4000)
    low, high = interval(scores[0] - scores[1])
    gap = first.astype(float) - second
    reference = stats.bootstrap((gap,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert low == pytest.approx(reference.low, abs=0.005) and high == pytest.approx(reference.high, abs=0.005)
    unpaired_low, unpaired_high = interval(scores[0] - np.random.default_rng(1).permutation(scores[1]))
    assert high - low < 0.8 * (unpaired_high - unpaired_low)


def test_a_draw_without_a_score_leaves_no_interval():
    """A recovery divides by the baseline's score, which a draw may have at zero."""
    assert interval(np.array([1.0, np.inf, 2.0])) is None
