"""Metrics of written answers, as ``evaluate`` knows them, and what they are made of."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import datasets
import numpy as np
import numpy.typing as npt

from hf_shrink.measurement.metrics import PairMetric

_TEXT = datasets.Value("string")
_WORD = re.compile(r"[^\W_]+")
ORDERS = 6
"""Longest n-gram of chrF."""
_BETA = 2.0
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


class RougeL(PairMetric):
    """Mean over texts of the F1 of the longest common subsequence of their words (ROUGE-L of Lin, 2004, section 3).

    Words are runs of letters and digits in any script, in lower case, without stemming.
    """

    said = true = _TEXT

    def _compute(self, *, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        return {"rouge_l": float(np.mean([common_words(said, true) for said, true in pairs]))}


class ChrF(PairMetric):
    """chrF2: the F-score of character n-grams of all texts together, recall twice as important (Popovic, WMT 2015).

    N-grams of one to six characters, spaces left out; precision and recall are means over the orders that both sides have.
    """

    said = true = _TEXT

    def _compute(self, *, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        counts = np.sum([character_counts(said, true) for said, true in pairs], axis=0)
        return {"chrf": float(chrf(counts[None])[0])}


def common_words(said: str, true: str) -> float:
    """F1 of the longest common subsequence of words; from 0 to 1."""
    ours, theirs = (_WORD.findall(text.lower()) for text in (said, true))
    if not ours or not theirs:
        return float(ours == theirs)
    lengths = [0] * (len(theirs) + 1)
    for word in ours:
        above_left = 0
        for i, other in enumerate(theirs, start=1):
            above = lengths[i]
            lengths[i] = above_left + 1 if word == other else max(above, lengths[i - 1])
            above_left = above
    return 2 * lengths[-1] / (len(ours) + len(theirs))


def character_counts(said: str, true: str) -> npt.NDArray[np.float64]:
    """For n from 1 to 6: n-grams of characters that are right, said, and there, ``[6, 3]``."""
    ours, theirs = ("".join(text.split()) for text in (said, true))
    found = []
    for n in range(1, ORDERS + 1):
        one, other = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (ours, theirs))
        found.append([(one & other).total(), one.total(), other.total()])
    return np.array(found, dtype=np.float64)


def chrf(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """chrF2 from sums of ``character_counts``, ``[draws, 6, 3]`` -> ``[draws]``, from 0 to 1."""
    hits, said, true = np.moveaxis(counts, -1, 0)
    there = (said > 0) & (true > 0)
    orders = np.maximum(there.sum(axis=1), 1)
    precision, recall = ((np.where(there, hits / np.maximum(size, 1), 0.0)).sum(axis=1) / orders for size in (said, true))
    weighted = _BETA**2 * precision + recall
    return np.asarray((1 + _BETA**2) * precision * recall / np.where(weighted > 0, weighted, 1.0))


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
