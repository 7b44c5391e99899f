"""How good a classifier's answers are, with intervals, and how much of a baseline's quality is left."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hf_shrink.errors import MismatchError, NonFiniteError
from hf_shrink.measurement.intervals import draw_scores, interval
from hf_shrink.measurement.metrics import Accuracy, MacroF1, macro_f1, score
from hf_shrink.measurement.predictions import Predictions
from hf_shrink.measurement.subjects import Bench, Subject, at_rest, device_of, explained
from hf_shrink.measurement.values import Measurement


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


def judge(model: Any, dataset: Any, tokenizer: Any, *, batch_size: int = 32) -> Predictions:
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


@dataclass(frozen=True)
class Score:
    """One metric: the number itself, and the same number under many weightings of the samples."""

    whole: Callable[[Predictions], float]
    weighted: Callable[[Predictions, npt.NDArray[Any]], npt.NDArray[np.float64]]


SCORES: Mapping[str, Score] = {
    "accuracy": Score(
        whole=lambda p: score(Accuracy, p.predicted, p.labels),
        weighted=lambda p, weights: np.asarray(weights @ p.correct / len(p.labels)),
    ),
    "macro_f1": Score(
        whole=lambda p: score(MacroF1, p.predicted, p.labels),
        weighted=lambda p, weights: macro_f1(p.predicted, p.labels, weights),
    ),
}


def quality(bench: Bench) -> list[list[Measurement]]:
    """Every score of every subject that can answer and, on the same samples, its distance from the baseline."""
    found: list[list[Measurement]] = [[] for _ in bench.subjects]
    answers = [_answers(subject, bench) for subject in bench.subjects]
    for i, own in enumerate(answers):
        if own is not None:
            found[i] += _judged(own, answers[bench.baseline] if i != bench.baseline else None, bench.config.bootstrap)
    return found


def _answers(subject: Subject, bench: Bench) -> Predictions | None:
    if subject.predictions is not None or subject.model is None or bench.dataset is None:
        return subject.predictions
    if subject.missing:
        names = ", ".join(subject.missing[:3])
        raise MismatchError(
            f"{subject.name}: {len(subject.missing)} weights are not in its folder ({names}), so transformers made them up.\n"
            "Its quality would mean nothing: give a fine-tuned model, or leave the evaluation data out."
        )
    tokenizer = bench.tokenizer if bench.tokenizer is not None else _tokenizer(subject)
    return judge(subject.model, bench.dataset, tokenizer, batch_size=max(bench.config.batch_sizes))


def _tokenizer(subject: Subject) -> Any:
    from transformers import AutoTokenizer

    if subject.folder is None:
        raise MismatchError(f"{subject.name}: evaluation data came without a tokenizer; give tokenizer=.")
    with explained(f"tokenizer of {subject.name}"):
        return AutoTokenizer.from_pretrained(str(subject.folder), local_files_only=True)


def _judged(own: Predictions, base: Predictions | None, draws: int) -> list[Measurement]:
    both = [own] if base is None or base.samples != own.samples else [own, base]
    found = []
    for name, metric in SCORES.items():
        statistics = [functools.partial(metric.weighted, p) for p in both]
        scores = 100 * draw_scores(statistics, len(own.labels), draws)
        setting = f"{own.samples}, {draws} resamples"
        values = [100 * metric.whole(p) for p in both]
        found.append(_measured(name, values[0], "%", setting, scores[0]))
        if len(values) == 2:
            found.append(_measured(f"{name}_difference", values[0] - values[1], "points", setting, scores[0] - scores[1]))
        if len(values) == 2 and values[1] > 0:
            with np.errstate(divide="ignore", invalid="ignore"):
                recovered = 100 * scores[0] / scores[1]
            found.append(_measured(f"{name}_recovery", 100 * values[0] / values[1], "%", setting, recovered))
    return found


def _measured(name: str, value: float, unit: str, setting: str, scores: npt.NDArray[np.float64]) -> Measurement:
    return Measurement(name=name, value=value, unit=unit, setting=setting, interval=interval(scores))
