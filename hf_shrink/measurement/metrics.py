"""Metrics as ``evaluate`` knows them, shipped with us: ``evaluate.load`` would fetch code from the network and run it."""

import tempfile
from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

from hf_shrink.measurement.entities import entities
from hf_shrink.measurement.estimates import correlation, midranks

_INTEGER, _FLOAT = datasets.Value("int64"), datasets.Value("float64")


class PairMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """A metric over pairs of what was said and what is true."""

    said: ClassVar[Any] = _INTEGER
    true: ClassVar[Any] = _INTEGER

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description="predictions and references, one pair a sample.",
            features=datasets.Features({"predictions": type(self).said, "references": type(self).true}),
        )


class Accuracy(PairMetric):
    """Fraction of samples whose predicted class is the true one."""

    def _compute(self, *, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}


class MacroF1(PairMetric):
    """F1 of each class that occurs in predictions or references, averaged without weights."""

    def _compute(self, *, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        predicted, labels = np.asarray(predictions), np.asarray(references)
        return {"macro_f1": float(macro_f1(predicted, labels, np.ones((1, len(labels))))[0])}


class MacroPrecision(PairMetric):
    """Of what is said to be of a class, the fraction that is; averaged over classes as in ``MacroF1``, 0 for one never said."""

    def _compute(self, *, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"macro_precision": float(_of_all(macro_precision, predictions, references))}


class MacroRecall(PairMetric):
    """Of what is of a class, the fraction that is said to be; averaged as in ``MacroF1``; 0 where there is none."""

    def _compute(self, *, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"macro_recall": float(_of_all(macro_recall, predictions, references))}


class Matthews(PairMetric):
    """Matthews' correlation of predicted and true classes, from -1 to 1; 0 where one side does not vary."""

    def _compute(self, *, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"matthews": float(_of_all(matthews, predictions, references))}


class LabelF1(PairMetric):
    """F1 where a sample has any number of labels, given as rows of zeros and ones.

    ``average="micro"`` counts all labels together; ``"macro"`` takes the mean over the labels that occur at all.
    """

    said = true = datasets.Sequence(_INTEGER)

    def _compute(
        self, *, predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]], average: str = "micro"
    ) -> dict[str, float]:
        said, true = (np.asarray(rows, dtype=np.float64) for rows in (predictions, references))
        hits, sizes = (said * true).sum(axis=0), (said.sum(axis=0), true.sum(axis=0))
        if average == "micro":
            return {"f1": float(f1(hits.sum(), *(size.sum() for size in sizes)))}
        there = sizes[0] + sizes[1] > 0
        return {"f1": float(f1(hits, *sizes)[there].mean()) if there.any() else 0.0}


class EntityF1(PairMetric):
    """F1 of whole entities in tagged sentences: the right words and the right kind, by the rules of ``entities``."""

    said = true = datasets.Sequence(datasets.Value("string"))

    def _compute(self, *, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
        pairs = [(entities(said), entities(true)) for said, true in zip(predictions, references, strict=True)]
        hits, said, true = (float(sum(map(len, part))) for part in ([s & t for s, t in pairs], *zip(*pairs, strict=True)))
        return {"entity_f1": float(f1(hits, said, true))}


class Perplexity(PairMetric):
    """``exp`` of the mean negative log-likelihood of a token: predictions are sums over blocks in nats, references their
    numbers of tokens. At least 1, and lower is better."""

    said = _FLOAT

    def _compute(self, *, predictions: Sequence[float], references: Sequence[int]) -> dict[str, float]:
        return {"perplexity": float(np.exp(np.sum(predictions) / np.sum(references)))}


class Pearson(PairMetric):
    """Pearson's correlation, from -1 to 1; 0 where one side does not vary."""

    said = true = _FLOAT

    def _compute(self, *, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        said, true = np.asarray(predictions), np.asarray(references)
        return {"pearson": float(correlation(said, true, np.ones((1, len(said))))[0])}


class Spearman(PairMetric):
    """Pearson's correlation of ranks, equal values at their mean rank."""

    said = true = _FLOAT

    def _compute(self, *, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        ones = np.ones((1, len(predictions)))
        said, true = midranks(np.asarray(predictions), ones), midranks(np.asarray(references), ones)
        return {"spearman": float(correlation(said, true, ones)[0])}


class MeanSquaredError(PairMetric):
    """Mean of the squared differences; lower is better."""

    said = true = _FLOAT

    def _compute(self, *, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return {"mse": float(np.mean((np.asarray(predictions) - np.asarray(references)) ** 2))}


def f1(hits: Any, said: Any, true: Any) -> npt.NDArray[np.float64]:
    """``2 * hits / (said + true)``, element by element; 0 where nothing was said and nothing is there."""
    sizes = np.asarray(said, dtype=np.float64) + true
    return np.asarray(np.divide(2.0 * np.asarray(hits), sizes, out=np.zeros(sizes.shape), where=sizes > 0))


def macro_f1(
    predicted: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], weights: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """Macro F1 of each weighting of the samples: ``weights`` ``[draws, samples]`` -> ``[draws]``, from 0 to 1.

    F1 of a class is ``2 * hits / (predicted + true)``; a class with neither in a draw takes no part in its mean.
    """
    classes = np.unique(np.concatenate([predicted, labels]))
    said, true = (values[:, None] == classes for values in (predicted, labels))
    hits, sizes = weights @ (said & true), weights @ (said.astype(weights.dtype) + true)
    scores = np.divide(2.0 * hits, sizes, out=np.zeros(sizes.shape), where=sizes > 0)
    return np.asarray(scores.sum(axis=1) / (sizes > 0).sum(axis=1))


def macro_precision(
    predicted: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], weights: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """Macro precision of each weighting, as ``macro_f1``: the mean of ``hits / said`` over classes that a draw has at all."""
    hits, said, true = _by_class(predicted, labels, weights)
    return _macro(hits, said, said + true)


def macro_recall(
    predicted: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], weights: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """Macro recall of each weighting, as ``macro_f1``: the mean of ``hits / true`` over classes that a draw has at all."""
    hits, said, true = _by_class(predicted, labels, weights)
    return _macro(hits, true, said + true)


def matthews(
    predicted: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], weights: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """Matthews' correlation of each weighting, for any number of classes (doi:10.1016/j.compbiolchem.2004.09.006).

    With ``n`` samples, ``c`` of them right, and ``s``, ``t`` the samples said and true of each class:
    ``(c n - s . t) / sqrt((n^2 - s . s) (n^2 - t . t))``; 0 where one side is a single class.
    """
    hits, said, true = _by_class(predicted, labels, weights)
    n = true.sum(axis=1)
    above = hits.sum(axis=1) * n - (said * true).sum(axis=1)
    below = np.sqrt((n**2 - (said**2).sum(axis=1)) * (n**2 - (true**2).sum(axis=1)))
    return np.asarray(np.divide(above, below, out=np.zeros(above.shape), where=below > 0))


def _by_class(
    predicted: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], weights: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Samples right, said and true of each class, ``[draws, classes]``."""
    classes = np.unique(np.concatenate([predicted, labels]))
    said, true = (values[:, None] == classes for values in (predicted, labels))
    hits, ours, theirs = ((weights @ part).astype(np.float64) for part in (said & true, said, true))
    return hits, ours, theirs


def _macro(
    hits: npt.NDArray[np.float64], of: npt.NDArray[np.float64], there: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    shares = np.divide(hits, of, out=np.zeros(hits.shape), where=of > 0)
    return np.asarray(shares.sum(axis=1) / (there > 0).sum(axis=1))


def _of_all(function: Any, predictions: Sequence[int], references: Sequence[int]) -> Any:
    """A function of weightings over all samples, each once."""
    return function(np.asarray(predictions), np.asarray(references), np.ones((1, len(references))))[0]


def score(metric: type[Any], predicted: Any, labels: Any, **options: Any) -> float:
    """The one number of a metric of ``evaluate``, in its own scale."""
    # evaluate makes a folder for every metric; one of our own keeps the user's cache as it was
    with tempfile.TemporaryDirectory() as folder:
        found = metric(keep_in_memory=True, cache_dir=folder).compute(predictions=predicted, references=labels, **options)
    return float(next(iter(found.values())))
