"""How much of an optimizer step one micro-batch is."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

IGNORED = -100


def labels_kept(inputs: Mapping[str, Any], *, shifts_labels: bool) -> Tensor:
    """How many labels of one micro-batch the task loss averages over, a whole number in a scalar tensor.

    The same rule by which ``Trainer`` counts those of the whole step: all but -100 and, where the loss moves the labels by
    one, without the first of each row.
    """
    labels: Tensor | None = inputs.get("shift_labels")
    if labels is None:
        labels = inputs["labels"][..., 1:] if shifts_labels else inputs["labels"]
    return labels.ne(IGNORED).sum()
