"""What a classifier says of labelled data."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hf_shrink.errors import MismatchError, NonFiniteError
from hf_shrink.measurement.predictions import Predictions
from hf_shrink.measurement.subjects import at_rest, device_of, explained


def predict(model: Any, dataset: Any, tokenizer: Any, *, batch_size: int = 32) -> npt.NDArray[np.float32]:
    """Logits ``[samples, classes]`` in the order of ``dataset``.

    Batches hold samples of like length, padded to the longest of the batch only.

    Args:
        dataset: tokenised: ``input_ids``, ``attention_mask`` and what else the tokenizer made.
        tokenizer: pads the batches; needs a padding token.

    Raises:
        MismatchError: data, tokenizer and model do not fit together.
        NonFiniteError: a logit is NaN or infinite.
    """
    columns = [name for name in dataset.column_names if name in tokenizer.model_input_names]
    if "input_ids" not in columns:
        raise MismatchError(f"evaluation data: no column 'input_ids' among {dataset.column_names}; tokenise it first.")
    rows = dataset.select_columns(columns)
    lengths = [len(ids) for ids in rows["input_ids"]]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    if not order:
        raise MismatchError("evaluation data: it holds no samples.")
    pieces = []
    with explained("predicting"), at_rest(model):
        for start in range(0, len(order), batch_size):
            batch = tokenizer.pad(rows[order[start : start + batch_size]], return_tensors="pt").to(device_of(model))
            pieces.append(model(**batch).logits.float().cpu())
    logits = torch.empty_like(joined := torch.cat(pieces))
    logits[torch.tensor(order)] = joined
    if bad := int((~logits.isfinite()).any(dim=-1).sum()):
        raise NonFiniteError(
            f"predicting: {bad} of {len(order)} samples have NaN or infinite logits; check the model's weights."
        )
    return np.asarray(logits.numpy(), dtype=np.float32)


def judge_classes(model: Any, dataset: Any, tokenizer: Any, *, batch_size: int = 32) -> Predictions:
    """The model's answers on a tokenised dataset with ``labels``; raises as ``predict``, and where the labels do not fit."""
    if "labels" not in dataset.column_names:
        raise MismatchError(f"evaluation data: no column 'labels' among {dataset.column_names}.")
    labels = np.asarray(dataset["labels"], dtype=np.int64)
    classes = model.config.num_labels
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        raise MismatchError(
            f"evaluation data: labels run from {labels.min()} to {labels.max()}, but the model has {classes} classes."
        )
    return Predictions.from_logits(predict(model, dataset, tokenizer, batch_size=batch_size), labels)
