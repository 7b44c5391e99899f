"""How well a model knows given rows, as one number that moves with every weight: the mean log-likelihood of what is right."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_shrink.class_names import labels_of
from hf_shrink.errors import MismatchError
from hf_shrink.measurement.judges import judge
from hf_shrink.measurement.predict import predict, predict_words
from hf_shrink.measurement.spans import span_likelihood
from hf_shrink.measurement.written import told_targets
from hf_shrink.pruning.sensitivity import Score
from hf_shrink.tasks import task_of

LIKELIHOOD = "log-likelihood"
_BATCH = 32


def score_on(data: Dataset, tokenizer: PreTrainedTokenizerBase, label_names: Sequence[str]) -> Score:
    """Mean log-likelihood in nats, and accuracy in percent where there are classes.

    Of the right class of a text or word, of the next or the hidden token, of an answer's two ends, or of each label being
    there or not. A number is taken to be spread around its estimate as the labels are around their mean, a constant left out.

    Args:
        data: tokenised, with ``labels``.
        tokenizer: pads it.
        label_names: classes in the order of the labels, matched with the model's by name; empty for language models.
    """
    if "pair" in data.column_names:
        raise MismatchError("sensitivity: texts without labels say nothing of what parts of a model are worth to it.")
    if "start_positions" in data.column_names:
        return _spans(data, tokenizer)
    if "target" in data.column_names:
        return _targets(data)
    if "labels" not in data.column_names:
        raise MismatchError(
            "sensitivity: rows of the training split have no hidden tokens of their own to be scored on.\n"
            "Give a validation split beside the test split."
        )
    if not label_names:
        return _tokens(data, tokenizer)
    first = data["labels"][0]
    if isinstance(first, int):
        return _classes(partial(_texts, data, tokenizer), label_names)
    if isinstance(first, list) and isinstance(first[0], int):
        return _classes(partial(_words, data, tokenizer), label_names)
    return _numbers(data, tokenizer) if isinstance(first, float) else _sets(data, tokenizer, label_names)


def chance(model: PreTrainedModel, label_names: Sequence[str]) -> float:
    """The log-likelihood, in nats, of one to which all answers are alike, or who always says the mean."""
    if model.config.problem_type == "regression":
        return -0.5
    if model.config.problem_type == "multi_label_classification":
        return -float(np.log(2))
    if task_of(type(model).__name__) == "question-answering":
        return -float(np.log(model.config.max_position_embeddings))  # no window is longer
    return -float(np.log(len(label_names) or model.config.vocab_size))


Logits: TypeAlias = npt.NDArray[np.floating[Any]]


def _texts(data: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> tuple[Logits, npt.NDArray[np.int64]]:
    return predict(model, data, tokenizer, batch_size=_BATCH), np.asarray(data["labels"])


def _words(data: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> tuple[Logits, npt.NDArray[np.int64]]:
    found = predict_words(model, data, tokenizer, batch_size=_BATCH)
    return found.logits, found.labels


def _order(model: PreTrainedModel, label_names: Sequence[str]) -> list[int]:
    own = labels_of(model)
    return [own.index(name) for name in label_names]


def _classes(answers: Callable[[PreTrainedModel], tuple[Logits, npt.NDArray[np.int64]]], label_names: Sequence[str]) -> Score:
    def score(model: PreTrainedModel) -> dict[str, float]:
        raw, labels = answers(model)
        logits = raw[:, _order(model, label_names)].astype(np.float64)
        likelihood = logits[np.arange(len(labels)), labels] - np.logaddexp.reduce(logits, axis=1)
        right = 100 * float((logits.argmax(axis=1) == labels).mean())
        return {LIKELIHOOD: float(likelihood.mean()), "accuracy_percent": right}

    return score


def _sets(data: Dataset, tokenizer: PreTrainedTokenizerBase, label_names: Sequence[str]) -> Score:
    there = np.asarray(data["labels"]) == 1

    def score(model: PreTrainedModel) -> dict[str, float]:
        logits = predict(model, data, tokenizer, batch_size=_BATCH)[:, _order(model, label_names)].astype(np.float64)
        likelihood = -np.logaddexp(0.0, np.where(there, -logits, logits))
        return {LIKELIHOOD: float(likelihood.mean()), "accuracy_percent": 100 * float(((logits > 0) == there).mean())}

    return score


def _numbers(data: Dataset, tokenizer: PreTrainedTokenizerBase) -> Score:
    labels = np.asarray(data["labels"], dtype=np.float64)
    spread = max(float(labels.var()), 1e-12)

    def score(model: PreTrainedModel) -> dict[str, float]:
        off = predict(model, data, tokenizer, batch_size=_BATCH)[:, 0].astype(np.float64) - labels
        return {LIKELIHOOD: -float((off**2).mean()) / (2 * spread)}

    return score


def _spans(data: Dataset, tokenizer: PreTrainedTokenizerBase) -> Score:
    def score(model: PreTrainedModel) -> dict[str, float]:
        likelihood, right = span_likelihood(model, data, tokenizer, batch_size=_BATCH)
        return {LIKELIHOOD: likelihood, "accuracy_percent": 100 * right}

    return score


def _targets(data: Dataset) -> Score:
    def score(model: PreTrainedModel) -> dict[str, float]:
        parts = told_targets(model, data, batch_size=_BATCH)
        total = sum(len(true) for _, _, true in parts)
        right = sum(int((best == true).sum()) for _, best, true in parts)
        return {LIKELIHOOD: -sum(nll for nll, _, _ in parts) / total, "accuracy_percent": 100 * right / total}

    return score


def _tokens(data: Dataset, tokenizer: PreTrainedTokenizerBase) -> Score:
    def score(model: PreTrainedModel) -> dict[str, float]:
        found: Any = judge(model, data, tokenizer, batch_size=_BATCH)
        right = 100 * float((found.best == found.labels).mean())
        return {LIKELIHOOD: -float(found.nll.sum() / found.tokens.sum()), "accuracy_percent": right}

    return score
