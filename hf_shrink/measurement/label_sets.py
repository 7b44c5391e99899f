"""What a model says where a sample may have any number of labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_shrink.errors import MismatchError
from hf_shrink.measurement.answers import Sampled
from hf_shrink.measurement.predict import check_labels, predict


@dataclass(frozen=True)
class LabelSets(Sampled):
    """Predicted and true labels of the same samples in the same order, booleans ``[samples, labels]`` each."""

    predicted: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.bool_]

    ndim = 2
    each = "one column a label"

    @cached_property
    def counts(self) -> npt.NDArray[np.float64]:
        """Of each sample and label: right, said, and there; 0 or 1, ``[3, samples, labels]``."""
        return np.stack([self.predicted & self.labels, self.predicted, self.labels]).astype(np.float64)


def judge_label_sets(
    model: Any, dataset: Any, tokenizer: Any, *, batch_size: int = 32, order: Sequence[int] | None = None
) -> LabelSets:
    """The model's answers on a tokenised dataset with ``labels``, 0 or 1 for each; it says what it finds likelier than not.

    Args:
        order: as for ``judge_classes``.

    Raises:
        MismatchError, NonFiniteError: as ``predict``, and where the labels do not fit.
    """
    check_labels(dataset)
    labels = np.asarray(dataset["labels"], dtype=np.float64)
    if labels.ndim != 2 or labels.shape[1] != model.config.num_labels or not np.isin(labels, (0, 1)).all():
        raise MismatchError(f"evaluation data: labels must be rows of {model.config.num_labels} zeros and ones.")
    logits = predict(model, dataset, tokenizer, batch_size=batch_size)
    return LabelSets((logits if order is None else logits[:, list(order)]) > 0, labels == 1)
