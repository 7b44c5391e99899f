"""Scores of lm-eval, by which language models are compared everywhere, for every model and against the baseline in pairs."""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hf_shrink.errors import NonFiniteError, RecipeError
from hf_shrink.measurement.answering import tokenizer_of
from hf_shrink.measurement.harness_lengths import Fitting, watch_lengths
from hf_shrink.measurement.harness_tasks import Tasks, begin_anew, check_tasks, closed, load_tasks
from hf_shrink.measurement.subjects import Bench, Subject, at_rest
from hf_shrink.measurement.values import Measurement
from hf_shrink.onnx_model import OnnxModel
from hf_shrink.tasks import problem_type_of, task_of

HARNESS: Mapping[str, tuple[str, Literal["higher", "lower"] | None]] = {
    "lm_eval": ("lm-eval", "higher"),
    "lm_eval_change": ("lm-eval against the baseline", "higher"),
    "lm_eval_loss": ("lm-eval (lower is better)", "lower"),
    "lm_eval_loss_change": ("lm-eval against the baseline (lower is better)", "lower"),
    "lm_eval_other": ("lm-eval, no better way known", None),
    "lm_eval_cut": ("lm-eval requests without their beginning", None),
}
"""Label of each row and which way is better; task and metric stand in the setting."""

_WIDTH = 1.96
"""Standard errors on either side of a 95% interval."""

Key = tuple[str, str]
"""Task, and the metric with its filter as lm-eval joins them: ``acc,none``."""


@dataclass(frozen=True)
class Scored:
    """What one model got.

    Attributes:
        found: lm-eval's results.
        each: the score of every example, for what is a plain mean of them.
        fitting: what the model was asked.
    """

    found: Mapping[str, Any]
    each: Mapping[Key, npt.NDArray[np.float64]]
    fitting: Fitting


def harness(bench: Bench) -> list[list[Measurement]]:
    """Every metric of every task as lm-eval gives it, with its standard error, and the change against the baseline's.

    The change has an interval where a score is a mean over examples: that of the differences, example by example. Graphs are
    left out: lm-eval asks models of transformers.

    Raises:
        RecipeError: a model is no causal language model.
        ResourceError, SecurityError: as ``check_tasks``.
        NonFiniteError: a score is no number.
    """
    config, found = bench.config.lm_eval, [list[Measurement]() for _ in bench.subjects]
    if config is None:
        return found
    for subject in bench.subjects:
        _check_model(subject)
    check_tasks(config, download=False)
    tasks, batch = load_tasks(config), max(bench.config.batch_sizes)
    scored = {
        i: _scored(subject, bench, tasks, batch)
        for i, subject in enumerate(bench.subjects)
        if subject.model is not None and not isinstance(subject.model, OnnxModel)
    }
    base = scored.get(bench.baseline)
    for i, own in scored.items():
        found[i] = list(_measured(own, base if i != bench.baseline else None, tasks))
    return found


def _check_model(subject: Subject) -> None:
    model = subject.model
    if model is None or isinstance(model, OnnxModel):
        return
    task = task_of(type(model).__name__, problem_type_of(model.config))
    if task != "causal-lm":
        raise RecipeError(
            f"measurement.lm_eval: {subject.name} is a {type(model).__name__}, and lm-eval asks causal language models; "
            "remove it."
        )


def _scored(subject: Subject, bench: Bench, tasks: Tasks, batch_size: int) -> Scored:
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    assert bench.config.lm_eval is not None and subject.model is not None
    tokenizer = subject.tokenizer if subject.tokenizer is not None else tokenizer_of(subject, bench)
    with at_rest(subject.model), closed(subject.name):
        begin_anew(tasks)
        # lm-eval gives a tokenizer a padding token: not to that of the caller.
        asked = HFLM(pretrained=subject.model, tokenizer=copy.deepcopy(tokenizer), backend="causal", batch_size=batch_size)
        fitting = watch_lengths(asked)
        found = evaluate(
            asked, tasks.loaded, limit=bench.config.lm_eval.limit, bootstrap_iters=bench.config.bootstrap, log_samples=True
        )
    return Scored(found, {key: values for key, values in _examples(found) if values is not None}, fitting)


def _examples(found: Mapping[str, Any]) -> Iterator[tuple[Key, npt.NDArray[np.float64] | None]]:
    """The scores behind each metric, in the order of the examples; None where their mean is not the metric."""
    for task, key, value in _values(found):
        metric, _, kept = key.partition(",")
        rows = [row for row in found["samples"].get(task, ()) if row["filter"] == kept]
        rows.sort(key=lambda row: row["doc_id"])
        scores = [row.get(metric) for row in rows]
        numbers = scores and all(isinstance(score, int | float | np.number) for score in scores)
        each = np.array(scores, dtype=np.float64) if numbers else None
        yield (task, key), each if each is not None and math.isclose(each.mean(), value, abs_tol=1e-9) else None


def _values(found: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Task, metric with filter, and value."""
    for task, metrics in found["results"].items():
        for key, value in metrics.items():
            metric, comma, _ = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float | np.number):
                continue
            if not math.isfinite(value):
                raise NonFiniteError(f"measurement.lm_eval: {metric} of {task} is {value}, which is no number to compare.")
            yield task, key, float(value)


def _measured(own: Scored, base: Scored | None, tasks: Tasks) -> Iterator[Measurement]:
    for task, key, value in _values(own.found):
        name, setting = _name(own.found, task, key), _setting(own.found, task, key, tasks)
        metric, _, kept = key.partition(",")
        stderr = own.found["results"][task].get(f"{metric}_stderr,{kept}")
        yield _with_error(name, value, stderr if isinstance(stderr, int | float | np.number) else None, setting)
        ours, theirs = own.each.get((task, key)), None if base is None else base.each.get((task, key))
        if name != "lm_eval_other" and ours is not None and theirs is not None and len(ours) == len(theirs):
            change = ours - theirs
            yield _with_error(f"{name}_change", change.mean(), change.std(ddof=1) / math.sqrt(len(change)), setting)
    if own.fitting.cut:
        setting = f"of {own.fitting.asked}, the model takes {own.fitting.most} tokens"
        yield Measurement(name="lm_eval_cut", value=own.fitting.cut, unit="requests", setting=setting)


def _with_error(name: str, value: float, stderr: Any, setting: str) -> Measurement:
    if stderr is None or not math.isfinite(stderr):
        return Measurement(name=name, value=float(value), unit="", setting=setting)
    around = (float(value - _WIDTH * stderr), float(value + _WIDTH * stderr))
    return Measurement(name=name, value=float(value), unit="", setting=setting, interval=around, stderr=float(stderr))


def _name(found: Mapping[str, Any], task: str, key: str) -> str:
    better = (found["higher_is_better"].get(task) or {}).get(key.partition(",")[0])
    return "lm_eval_other" if better is None else "lm_eval" if better else "lm_eval_loss"


def _setting(found: Mapping[str, Any], task: str, key: str, tasks: Tasks) -> str:
    """``task arc_easy: acc, version 1.0, 0-shot, 100 of 2376 examples, lm-eval 0.4.13``."""
    metric, _, kept = key.partition(",")
    what = f"task {_word(task)}: {_word(metric)}{'' if kept == 'none' else f' after {_word(kept)}'}"
    shots, counts = found["n-shot"].get(task), found["n-samples"].get(task)
    parts = [what, f"version {_word(found['versions'].get(task))}"]
    parts += [f"{shots}-shot"] if shots is not None else []
    asked = counts["effective"] if counts else found["results"][task].get("sample_len")
    whole = f"{asked} of {counts['original']}" if counts and counts["original"] != asked else str(asked)
    parts += [f"{whole} examples", f"lm-eval {version('lm_eval')}"]
    return ", ".join([*parts, f"definition {tasks.definition}"] if task in tasks.own else parts)


def _word(text: object) -> str:
    """A name without the comma that parts a setting."""
    return str(text).replace(",", ";")
