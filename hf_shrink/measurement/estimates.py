"""What a model says where a sample has a number for its label, and how far that follows the truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_shrink.errors import MismatchError
from hf_shrink.measurement.answers import Sampled
from hf_shrink.measurement.predict import check_labels, predict

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimates(Sampled):
    """Predicted and true numbers of the same samples in the same order, float64 ``[samples]`` each."""

    predicted: Floats
    labels: Floats


def judge_estimates(
    model: Any, dataset: Any, tokenizer: Any, *, batch_size: int = 32, order: Sequence[int] | None = None
) -> Estimates:
    """The model's answers on a tokenised dataset with ``labels``, finite numbers.

    Args:
        order: there is one number, so no order of numbers: None.

    Raises:
        MismatchError, NonFiniteError: as ``predict``, and where the labels do not fit.
    """
    assert order is None, "one number has no order"
    check_labels(dataset)
    labels = np.asarray(dataset["labels"], dtype=np.float64)
    logits = predict(model, dataset, tokenizer, batch_size=batch_size)
    if logits.shape != (len(labels), 1) or not np.isfinite(labels).all():
        raise MismatchError(f"evaluation data: finite numbers are needed for a model with 1 output, not {logits.shape[-1]}.")
    return Estimates(logits[:, 0].astype(np.float64), labels)


def correlation(x: Floats, y: Floats, weights: npt.NDArray[Any]) -> Floats:
    """Pearson's r of each weighting: ``x``, ``y`` ``[samples]`` or ``[draws, samples]``, ``weights`` ``[draws, samples]``.

    Returns:
        ``[draws]``, from -1 to 1; 0 where one of the two does not vary, and so follows nothing.
    """
    total = weights.sum(axis=1, keepdims=True)
    left, right = (v - (weights * v).sum(axis=1, keepdims=True) / total for v in (x, y))
    together, one, other = ((weights * a * b).sum(axis=1) for a, b in ((left, right), (left, left), (right, right)))
    scale = np.sqrt(one * other)
    flat = scale <= 1e-12 * np.maximum((weights * x**2).sum(axis=1), 1e-300)
    return np.asarray(np.divide(together, scale, out=np.zeros(len(scale)), where=~flat))


def midranks(values: Floats, weights: npt.NDArray[Any]) -> Floats:
    """Ranks in each drawn sample, ``[draws, samples]``: what is drawn twice counts twice, equal values share their mean."""
    order = np.argsort(values, kind="stable")
    first = np.concatenate([[True], np.diff(values[order]) != 0])
    sizes = np.add.reduceat(weights[:, order], np.flatnonzero(first), axis=1, dtype=np.float64)
    ranks = np.cumsum(sizes, axis=1) - sizes + (sizes + 1) / 2
    found = np.empty(weights.shape)
    found[:, order] = ranks[:, np.cumsum(first) - 1]
    return found
