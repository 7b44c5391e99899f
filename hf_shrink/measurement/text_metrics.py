"""Metrics of written answers, as ``evaluate`` knows them, and what they are made of."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import datasets
import numpy as np

from hf_shrink.measurement.metrics import PairMetric

_TEXT = datasets.Value("string")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class ExactMatch(PairMetric):
    """Fraction of answers that are one of the true ones, case, punctuation, articles and spaces aside (arXiv:1606.05250)."""

    said, true = _TEXT, datasets.Sequence(_TEXT)

    def _compute(self, *, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        return {"exact_match": float(np.mean([exact(said, true) for said, true in pairs]))}


class AnswerF1(PairMetric):
    """Mean over answers of the F1 of their words, against the true answer that fits best (arXiv:1606.05250)."""

    said, true = _TEXT, datasets.Sequence(_TEXT)

    def _compute(self, *, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        return {"answer_f1": float(np.mean([shared_words(said, true) for said, true in pairs]))}


def plain_words(text: str) -> list[str]:
    """Lower-case words without punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact(said: str, true: Sequence[str]) -> float:
    """1.0 where the plain words are those of a true answer, else 0.0."""
    return float(any(plain_words(said) == plain_words(each) for each in true))


def shared_words(said: str, true: Sequence[str]) -> float:
    """F1 of the plain words, counted as often as they stand, of the best of the true answers; from 0 to 1."""
    return max(_f1(plain_words(said), plain_words(each)) for each in true)


def _f1(said: Sequence[str], true: Sequence[str]) -> float:
    if not said or not true:
        return float(said == true)
    return 2 * (Counter(said) & Counter(true)).total() / (len(said) + len(true))
