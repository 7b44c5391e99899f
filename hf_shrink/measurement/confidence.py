"""How sure a classifier is of what it says, whether it is right to be, and how far it is from its baseline."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from hf_shrink.measurement.answering import answers_of
from hf_shrink.measurement.answers import Answers
from hf_shrink.measurement.intervals import draw_scores, interval
from hf_shrink.measurement.predictions import Predictions
from hf_shrink.measurement.subjects import Bench
from hf_shrink.measurement.tags import Tags
from hf_shrink.measurement.values import Measurement, ReliabilityBin

BINS = 15
"""Of equal width, as in arXiv:1706.04599."""

Floats: TypeAlias = npt.NDArray[np.float64]
Sure: TypeAlias = Predictions | Tags
"""Answers that are one class of several a position: a text, or a word."""


def confidence(bench: Bench) -> list[list[Measurement]]:
    """Of every classifier: mean probability of its answer and calibration error; beside a baseline on the same samples
    also how often both say the same, and KL(baseline || model)."""
    found: list[list[Measurement]] = [[] for _ in bench.subjects]
    answers = answers_of(bench)
    base = answers[bench.baseline]
    for i, own in enumerate(answers):
        if isinstance(own, Sure):
            other = base if i != bench.baseline and isinstance(base, Sure) and base.samples == own.samples else None
            found[i] += _alone(own, bench.config.bootstrap) + (_beside(own, other, bench.config.bootstrap) if other else [])
    return found


def reliability(answers: Answers | None) -> tuple[ReliabilityBin, ...]:
    """The bins behind the calibration error that hold an answer; none of what has no probabilities."""
    if not isinstance(answers, Sure) or answers.logits is None:
        return ()
    sure = probabilities(answers.logits)
    bins, right = bins_of(sure), answers.predicted == answers.labels
    return tuple(
        ReliabilityBin(
            low=index / BINS,
            high=(index + 1) / BINS,
            count=int((here := bins == index).sum()),
            confidence=float(sure[here].mean()),
            accuracy=float(right[here].mean()),
        )
        for index in np.unique(bins).tolist()
    )


def probabilities(logits: npt.NDArray[Any]) -> Floats:
    """Softmax probability of the likeliest class: ``[positions, classes]`` -> ``[positions]``, above 0 and at most 1."""
    return np.asarray(np.exp(log_softmax(logits).max(axis=-1)))


def log_softmax(logits: npt.NDArray[Any]) -> Floats:
    """Logarithms of the probabilities, in float64, of the shape of ``logits``."""
    wide = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)))


def bins_of(sure: Floats) -> npt.NDArray[np.int64]:
    """The bin of each probability: number ``m``, from 0, holds those above ``m / 15`` and up to ``(m + 1) / 15``."""
    return np.asarray(np.clip(np.ceil(sure * BINS) - 1, 0, BINS - 1), dtype=np.int64)


def calibration_error(answers: Sure, sure: Floats, weights: npt.NDArray[Any]) -> Floats:
    """Expected calibration error of each weighting (arXiv:1706.04599, eq. 3).

    The mean over all answers of ``|accuracy - mean probability|`` of the bin that each falls in.

    Args:
        answers: predicted and true classes.
        sure: probability of each predicted class, ``[positions]``.
        weights: how often each sample counts, ``[draws, samples]``.

    Returns:
        ``[draws]``, from 0 to 1.
    """
    gaps, bins = (answers.predicted == answers.labels) - sure, bins_of(sure)
    sums = np.stack([answers.per_sample(np.where(bins == index, gaps, 0.0)) for index in range(BINS)], axis=1)
    return np.asarray(np.abs(weights @ sums).sum(axis=1) / (weights @ answers.positions))


def divergence(own: Sure, base: Sure) -> Floats | None:
    """KL(baseline || model) of the probabilities at each position, in nats; None where one of the two gives none."""
    if own.logits is None or base.logits is None or own.logits.shape != base.logits.shape:
        return None
    model, other = log_softmax(own.logits), log_softmax(base.logits)
    return np.asarray((np.exp(other) * (other - model)).sum(axis=-1))


def _alone(own: Sure, draws: int) -> list[Measurement]:
    if own.logits is None:
        return []
    sure = probabilities(own.logits)
    # no interval: drawing again adds noise to every bin, so that resampled errors lie above the one that was measured
    error = 100 * float(calibration_error(own, sure, np.ones((1, len(own))))[0])
    setting = f"{own.samples}, {BINS} equal bins"
    return [
        _mean("confidence", own, sure, draws, unit="%", scale=100),
        Measurement(name="calibration_error", value=error, unit="%", setting=setting),
    ]


def _beside(own: Sure, base: Sure, draws: int) -> list[Measurement]:
    if (apart := divergence(own, base)) is None:
        return []
    same = (own.predicted == base.predicted).astype(np.float64)
    return [
        _mean("agreement", own, same, draws, unit="%", scale=100),
        _mean("divergence", own, apart, draws, unit="nats"),
    ]


def _mean(name: str, own: Sure, values: Floats, draws: int, *, unit: str, scale: float = 1.0) -> Measurement:
    """The mean over all positions of one number each, and its interval."""
    mean: Callable[[npt.NDArray[Any]], Floats] = functools.partial(_weighted, own.per_sample(values), own.positions)
    value = scale * float(mean(np.ones((1, len(own))))[0])
    between = interval(scale * draw_scores([mean], len(own), draws)[0])
    return Measurement(name=name, value=value, unit=unit, setting=f"{own.samples}, {draws} resamples", interval=between)


def _weighted(sums: Floats, positions: npt.NDArray[np.int64], weights: npt.NDArray[Any]) -> Floats:
    return np.asarray(weights @ sums / (weights @ positions))
