"""How well a model knows given rows, as one number that moves with every weight: the mean log-likelihood of what is right."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_shrink.measurement.next_tokens import judge_next_tokens
from hf_shrink.measurement.predict import predict
from hf_shrink.models.pairs import labels_of
from hf_shrink.pruning.sensitivity import Score

LIKELIHOOD = "log-likelihood"
_BATCH = 32


def score_on(data: Dataset, tokenizer: PreTrainedTokenizerBase, label_names: Sequence[str]) -> Score:
    """Mean log-likelihood in nats, at most 0, and accuracy in percent: of the right class, or of the next token.

    Args:
        data: tokenised, with ``labels``.
        tokenizer: pads it.
        label_names: classes in the order of the labels, matched with the model's by name; empty for language models.
    """
    return _classes(data, tokenizer, label_names) if label_names else _next_tokens(data)


def chance(model: PreTrainedModel, label_names: Sequence[str]) -> float:
    """The log-likelihood, in nats, of one to which all classes, or all tokens of the vocabulary, are alike."""
    return -float(np.log(len(label_names) or model.config.vocab_size))


def _classes(data: Dataset, tokenizer: PreTrainedTokenizerBase, label_names: Sequence[str]) -> Score:
    labels = np.asarray(data["labels"])

    def score(model: PreTrainedModel) -> dict[str, float]:
        own = labels_of(model)
        order = [own.index(name) for name in label_names]
        logits = predict(model, data, tokenizer, batch_size=_BATCH)[:, order].astype(np.float64)
        likelihood = logits[np.arange(len(labels)), labels] - np.logaddexp.reduce(logits, axis=1)
        right = 100 * float((logits.argmax(axis=1) == labels).mean())
        return {LIKELIHOOD: float(likelihood.mean()), "accuracy_percent": right}

    return score


def _next_tokens(data: Dataset) -> Score:
    def score(model: PreTrainedModel) -> dict[str, float]:
        found = judge_next_tokens(model, data, batch_size=_BATCH)
        right = 100 * float((found.best == found.labels).mean())
        return {LIKELIHOOD: -float(found.nll.sum() / found.tokens.sum()), "accuracy_percent": right}

    return score
