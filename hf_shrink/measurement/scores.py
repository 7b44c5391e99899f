"""One number from many answers, for each kind of answers: the number itself, and under many weightings of the samples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hf_shrink.measurement.answers import Answers
from hf_shrink.measurement.metrics import Accuracy, MacroF1, Perplexity, macro_f1, score
from hf_shrink.measurement.next_tokens import NextTokens
from hf_shrink.measurement.predictions import Predictions

Weights = npt.NDArray[Any]
"""How often each sample counts, ``[draws, samples]``."""


@dataclass(frozen=True)
class Score:
    """One metric.

    Attributes:
        of: the kind of answers that have it.
        whole: the number over all samples, by the metric that is shipped.
        weighted: the same number for each weighting, ``[draws]``.
        unit: of the number.
        scale: factor from what the functions return to the unit.
        change: how two models are set against each other: by ``points`` (and what is recovered, where more is better), or by
            ``ratio``.
    """

    of: type
    whole: Callable[[Any], float]
    weighted: Callable[[Any, Weights], npt.NDArray[np.float64]]
    unit: str = "%"
    scale: float = 100.0
    change: Literal["points", "ratio"] = "points"


@dataclass(frozen=True)
class Agreement:
    """How often two models give the same answer, on each weighting; for answers that are one choice of many a position."""

    of: type
    weighted: Callable[[Any, Any, Weights], npt.NDArray[np.float64]]


def _perplexity(answers: NextTokens, weights: Weights) -> npt.NDArray[np.float64]:
    return np.asarray(np.exp(weights @ answers.nll / (weights @ answers.tokens)))


def _share(answers: NextTokens, hits: npt.NDArray[Any], weights: Weights) -> npt.NDArray[np.float64]:
    return np.asarray(weights @ answers.per_block(hits) / (weights @ answers.tokens))


SCORES: Mapping[str, Score] = {
    "accuracy": Score(
        Predictions,
        whole=lambda p: score(Accuracy, p.predicted, p.labels),
        weighted=lambda p, weights: np.asarray(weights @ p.correct / len(p.labels)),
    ),
    "macro_f1": Score(
        Predictions,
        whole=lambda p: score(MacroF1, p.predicted, p.labels),
        weighted=lambda p, weights: macro_f1(p.predicted, p.labels, weights),
    ),
    "perplexity": Score(
        NextTokens,
        whole=lambda a: score(Perplexity, a.nll, a.tokens),
        weighted=_perplexity,
        unit="ppl",
        scale=1.0,
        change="ratio",
    ),
    "next_token_accuracy": Score(
        NextTokens,
        whole=lambda a: score(Accuracy, a.best, a.labels),
        weighted=lambda a, weights: _share(a, a.best == a.labels, weights),
    ),
}

AGREEMENTS: Mapping[str, Agreement] = {
    "next_token_agreement": Agreement(NextTokens, lambda own, base, weights: _share(own, own.best == base.best, weights)),
}


def scores_of(answers: Answers) -> dict[str, Score]:
    """Those that this kind of answers has, by name."""
    return {name: entry for name, entry in SCORES.items() if isinstance(answers, entry.of)}


def agreements_of(answers: Answers) -> dict[str, Agreement]:
    """As ``scores_of``."""
    return {name: entry for name, entry in AGREEMENTS.items() if isinstance(answers, entry.of)}
