"""Metrics as ``evaluate`` knows them, shipped with us: ``evaluate.load`` would fetch code from the network and run it."""

import tempfile
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt


class _ClassMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """A metric over predicted and true class indices."""

    def _info(self) -> Any:
        whole = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description="predictions and references: class indices, one a sample.",
            features=datasets.Features({"predictions": whole, "references": whole}),
        )


class Accuracy(_ClassMetric):
    """Fraction of samples whose predicted class is the true one."""

    def _compute(self, *, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}


class MacroF1(_ClassMetric):
    """F1 of each class that occurs in predictions or references, averaged without weights."""

    def _compute(self, *, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        predicted, labels = np.asarray(predictions), np.asarray(references)
        return {"macro_f1": float(macro_f1(predicted, labels, np.ones((1, len(labels))))[0])}


class Perplexity(evaluate.Metric):  # type: ignore[misc]
    """``exp`` of the mean negative log-likelihood of a token; at least 1, and lower is better."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description="predictions: summed negative log-likelihood of a block in nats. references: its tokens.",
            features=datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, *, predictions: Sequence[float], references: Sequence[int]) -> dict[str, float]:
        return {"perplexity": float(np.exp(np.sum(predictions) / np.sum(references)))}


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


def score(metric: type[Any], predicted: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    """The one number of a metric of ``evaluate``, in its own scale."""
    # evaluate makes a folder for every metric; one of our own keeps the user's cache as it was
    with tempfile.TemporaryDirectory() as folder:
        found = metric(keep_in_memory=True, cache_dir=folder).compute(predictions=predicted, references=labels)
    return float(next(iter(found.values())))
