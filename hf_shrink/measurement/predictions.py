"""The answers of a classifier on labelled data."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hf_shrink.errors import MismatchError
from hf_shrink.measurement.predict import check_classes, check_labels, predict


@dataclass(frozen=True)
class Predictions:
    """Predicted and true classes of the same samples in the same order, int64 ``[samples]`` each.

    ``logits`` are those behind the answers, float32 ``[samples, classes]``; None where only the answers are known.
    """

    predicted: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.predicted.shape != self.labels.shape or self.labels.ndim != 1:
            raise MismatchError(
                f"predictions {self.predicted.shape} do not fit labels {self.labels.shape}; one class a sample."
            )
        if len(self.labels) == 0:
            raise MismatchError("predictions: no samples to judge; the evaluation data is empty.")

    @classmethod
    def of(cls, predicted: Sequence[int] | npt.NDArray[Any], labels: Sequence[int] | npt.NDArray[Any]) -> Self:
        """From any integer sequences of equal length."""
        return cls(np.asarray(predicted, dtype=np.int64), np.asarray(labels, dtype=np.int64))

    @classmethod
    def from_logits(cls, logits: npt.NDArray[np.float32], labels: Sequence[int] | npt.NDArray[Any]) -> Self:
        """The class with the largest of the logits ``[samples, classes]``; the first one where several are equal."""
        return cls(np.asarray(logits.argmax(axis=-1)), np.asarray(labels, dtype=np.int64), logits)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def correct(self) -> npt.NDArray[np.bool_]:
        """True where the prediction is the label, ``[samples]``."""
        return np.asarray(self.predicted == self.labels)

    def per_sample(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """One value a position, summed over each sample; here every sample is one position."""
        return values

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """How many answers each sample has: one."""
        return np.ones(len(self.labels), dtype=np.int64)

    @cached_property
    def samples(self) -> str:
        """Count and a digest of the labels, e.g. ``1600 examples, labels 1a2b3c4d``: equal only for the same test set."""
        return f"{len(self.labels)} examples, labels {sha256(self.labels.tobytes()).hexdigest()[:8]}"


def judge_classes(
    model: Any, dataset: Any, tokenizer: Any, *, batch_size: int = 32, order: Sequence[int] | None = None
) -> Predictions:
    """The model's answers on a tokenised dataset with ``labels``.

    Args:
        order: class ``i`` of the data is class ``order[i]`` of the model; None where both agree.

    Raises:
        MismatchError, NonFiniteError: as ``predict``, and where the labels do not fit.
    """
    check_labels(dataset)
    labels = np.asarray(dataset["labels"], dtype=np.int64)
    check_classes(labels, model.config.num_labels)
    logits = predict(model, dataset, tokenizer, batch_size=batch_size)
    return Predictions.from_logits(logits if order is None else logits[:, list(order)], labels)
