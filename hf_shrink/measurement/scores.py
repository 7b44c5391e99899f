"""One number from many answers, for each kind of answers: the number itself, and under many weightings of the samples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hf_shrink.measurement.answers import Answers
from hf_shrink.measurement.estimates import Estimates, correlation, midranks
from hf_shrink.measurement.label_sets import LabelSets
from hf_shrink.measurement.masked_tokens import MaskedTokens
from hf_shrink.measurement.metrics import (
    Accuracy,
    EntityF1,
    LabelF1,
    MacroF1,
    MacroPrecision,
    MacroRecall,
    Matthews,
    MeanSquaredError,
    Pearson,
    Perplexity,
    Spearman,
    f1,
    macro_f1,
    macro_precision,
    macro_recall,
    matthews,
    score,
)
from hf_shrink.measurement.next_tokens import NextTokens
from hf_shrink.measurement.predictions import Predictions
from hf_shrink.measurement.sentence_vectors import ScoredPairs, SentenceVectors
from hf_shrink.measurement.spans import Spans
from hf_shrink.measurement.tags import EntityTags, Tags
from hf_shrink.measurement.text_metrics import ORDERS, AnswerF1, ChrF, ExactMatch, RougeL, chrf
from hf_shrink.measurement.token_answers import TokenAnswers
from hf_shrink.measurement.written import Written

Weights = npt.NDArray[Any]
"""How often each sample counts, ``[draws, samples]``."""


@dataclass(frozen=True)
class Score:
    """One metric of one kind of answers.

    Attributes:
        name: of the measurement.
        of: the kind of answers that have it.
        whole: the number over all samples, by the metric that is shipped.
        weighted: the same number for each weighting, ``[draws]``.
        unit: of the number.
        scale: factor from what the functions return to the unit.
        change: how two models are set against each other: by ``points`` (and what is recovered: more is better), or by
            ``ratio``.
    """

    name: str
    of: type
    whole: Callable[[Any], float]
    weighted: Callable[[Any, Weights], npt.NDArray[np.float64]]
    unit: str = "%"
    scale: float = 100.0
    change: Literal["points", "ratio"] = "points"


@dataclass(frozen=True)
class Agreement:
    """How far two models say the same, on each weighting: how often they choose the same of many, or how near they come.

    Attributes:
        of: the kind of answers that have it.
        weighted: from both models' answers to one number for each weighting, ``[draws]``.
        unit, scale: as in ``Score``.
    """

    of: type
    weighted: Callable[[Any, Any, Weights], npt.NDArray[np.float64]]
    unit: str = "%"
    scale: float = 100.0


def _perplexity(answers: TokenAnswers, weights: Weights) -> npt.NDArray[np.float64]:
    return np.asarray(np.exp(weights @ answers.nll / (weights @ answers.tokens)))


def _share(answers: TokenAnswers, hits: npt.NDArray[Any], weights: Weights) -> npt.NDArray[np.float64]:
    return np.asarray(weights @ answers.per_block(hits) / (weights @ answers.tokens))


def _mean(values: npt.NDArray[np.float64], weights: Weights) -> npt.NDArray[np.float64]:
    return np.asarray(weights @ values / weights.sum(axis=1))


def _entity_f1(answers: EntityTags, weights: Weights) -> npt.NDArray[np.float64]:
    return f1(*(weights @ answers.counts).T)


def _micro_f1(answers: LabelSets, weights: Weights) -> npt.NDArray[np.float64]:
    return f1(*(weights @ part.sum(axis=1) for part in answers.counts))


def _label_macro_f1(answers: LabelSets, weights: Weights) -> npt.NDArray[np.float64]:
    hits, said, true = (weights @ part for part in answers.counts)
    there = said + true > 0
    return np.asarray(f1(hits, said, true).sum(axis=1) / np.maximum(there.sum(axis=1), 1))


def _spearman(answers: Estimates, weights: Weights) -> npt.NDArray[np.float64]:
    return correlation(midranks(answers.predicted, weights), midranks(answers.labels, weights), weights)


def _of_texts(kind: type, name: str) -> Score:
    """Perplexity, over whatever tokens an answer counts."""
    return Score(
        name,
        kind,
        whole=lambda a: score(Perplexity, a.nll, a.tokens),
        weighted=_perplexity,
        unit="ppl",
        scale=1.0,
        change="ratio",
    )


def _of_tokens(kind: type[TokenAnswers], perplexity: str, accuracy: str) -> tuple[Score, Score]:
    """Both numbers of answers about tokens, under the names that each kind of model gives them."""
    return (
        _of_texts(kind, perplexity),
        Score(
            accuracy,
            kind,
            whole=lambda a: score(Accuracy, a.best, a.labels),
            weighted=lambda a, weights: _share(a, a.best == a.labels, weights),
        ),
    )


def _of_classes(name: str, metric: type, weighted: Callable[[Any, Any, Weights], npt.NDArray[np.float64]]) -> Score:
    """A number that both sides' classes make up."""
    return Score(
        name,
        Predictions,
        whole=lambda p: score(metric, p.predicted, p.labels),
        weighted=lambda p, weights: weighted(p.predicted, p.labels, weights),
    )


SCORES: tuple[Score, ...] = (
    Score(
        "accuracy",
        Predictions,
        whole=lambda p: score(Accuracy, p.predicted, p.labels),
        weighted=lambda p, weights: np.asarray(weights @ p.correct / len(p.labels)),
    ),
    _of_classes("macro_f1", MacroF1, macro_f1),
    _of_classes("macro_precision", MacroPrecision, macro_precision),
    _of_classes("macro_recall", MacroRecall, macro_recall),
    _of_classes("matthews", Matthews, matthews),
    *_of_tokens(NextTokens, "perplexity", "next_token_accuracy"),
    *_of_tokens(MaskedTokens, "masked_perplexity", "masked_token_accuracy"),
    Score(
        "answer_f1",
        Spans,
        whole=lambda a: score(AnswerF1, a.predicted, a.labels),
        weighted=lambda a, weights: _mean(a.overlaps, weights),
    ),
    Score(
        "exact_match",
        Spans,
        whole=lambda a: score(ExactMatch, a.predicted, a.labels),
        weighted=lambda a, weights: _mean(a.matches, weights),
    ),
    Score(
        "similarity_spearman",
        ScoredPairs,
        whole=lambda a: score(Spearman, a.predicted, a.labels),
        weighted=lambda a, weights: correlation(midranks(a.predicted, weights), midranks(a.labels, weights), weights),
    ),
    Score(
        "rouge_l",
        Written,
        whole=lambda a: score(RougeL, a.predicted, a.references),
        weighted=lambda a, weights: _mean(a.overlaps, weights),
    ),
    Score(
        "chrf",
        Written,
        whole=lambda a: score(ChrF, a.predicted, a.references),
        weighted=lambda a, weights: chrf((weights @ a.characters).reshape(-1, ORDERS, 3)),
    ),
    _of_texts(Written, "target_perplexity"),
    Score(
        "entity_f1",
        EntityTags,
        whole=lambda a: score(EntityF1, a.sentences(a.predicted), a.sentences(a.labels)),
        weighted=_entity_f1,
    ),
    Score(
        "tag_accuracy",
        Tags,
        whole=lambda a: score(Accuracy, a.predicted, a.labels),
        weighted=lambda a, weights: np.asarray(weights @ a.hits / (weights @ a.words)),
    ),
    Score(
        "micro_f1",
        LabelSets,
        whole=lambda a: score(LabelF1, a.predicted.astype(int), a.labels.astype(int)),
        weighted=_micro_f1,
    ),
    Score(
        "macro_f1",
        LabelSets,
        whole=lambda a: score(LabelF1, a.predicted.astype(int), a.labels.astype(int), average="macro"),
        weighted=_label_macro_f1,
    ),
    Score(
        "pearson",
        Estimates,
        whole=lambda a: score(Pearson, a.predicted, a.labels),
        weighted=lambda a, weights: correlation(a.predicted, a.labels, weights),
    ),
    Score("spearman", Estimates, whole=lambda a: score(Spearman, a.predicted, a.labels), weighted=_spearman),
    Score(
        "mse",
        Estimates,
        whole=lambda a: score(MeanSquaredError, a.predicted, a.labels),
        weighted=lambda a, weights: np.asarray(weights @ (a.predicted - a.labels) ** 2 / weights.sum(axis=1)),
        unit="label²",
        scale=1.0,
        change="ratio",
    ),
)

AGREEMENTS: Mapping[str, Agreement] = {
    "next_token_agreement": Agreement(NextTokens, lambda own, base, weights: _share(own, own.best == base.best, weights)),
    "cosine_to_baseline": Agreement(
        SentenceVectors, lambda own, base, weights: _mean(own.cosines(base), weights), unit="", scale=1.0
    ),
    "masked_token_agreement": Agreement(MaskedTokens, lambda own, base, weights: _share(own, own.best == base.best, weights)),
}


def scores_of(answers: Answers) -> dict[str, Score]:
    """Those that this kind of answers has, by name."""
    return {entry.name: entry for entry in SCORES if isinstance(answers, entry.of)}


def agreements_of(answers: Answers) -> dict[str, Agreement]:
    """As ``scores_of``."""
    return {name: entry for name, entry in AGREEMENTS.items() if isinstance(answers, entry.of)}
