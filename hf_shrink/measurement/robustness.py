"""What is left of a classifier's accuracy when its texts are disturbed."""

import functools
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from hf_shrink.errors import RecipeError
from hf_shrink.measurement.answering import tokenizer_of
from hf_shrink.measurement.config import RobustnessConfig
from hf_shrink.measurement.intervals import draw_scores, interval
from hf_shrink.measurement.judges import judge
from hf_shrink.measurement.predictions import Predictions
from hf_shrink.measurement.subjects import Bench, Subject
from hf_shrink.measurement.values import Measurement

Floats: TypeAlias = npt.NDArray[np.float64]


def robustness(bench: Bench) -> list[list[Measurement]]:
    """Accuracy on the same rows undisturbed, disturbed in each way and in the mean, set against the baseline's.

    Raises:
        RecipeError: it is asked for, and there are no texts, or no classes.
    """
    config = bench.config.robust
    found: list[list[Measurement]] = [[] for _ in bench.subjects]
    if config is None:
        return found
    if bench.rewritten is None:
        raise RecipeError("measurement.robustness: there are no texts to disturb, only tokens; measure with a recipe.")
    asked = {i: _right(subject, bench, config) for i, subject in enumerate(bench.subjects) if subject.model is not None}
    base = asked.get(bench.baseline)
    for i, own in asked.items():
        found[i] = _measured(own, base if i != bench.baseline else None, config, bench.config.bootstrap)
    return found


def _right(subject: Subject, bench: Bench, config: RobustnessConfig) -> dict[str, Predictions]:
    """The answers to the undisturbed rows under ``clean``, and to each kind under its name."""
    assert bench.rewritten is not None
    tokenizer = subject.tokenizer if subject.tokenizer is not None else tokenizer_of(subject, bench)
    found = {}
    for kind in ("clean", *config.rates):
        data = bench.rewritten(None if kind == "clean" else kind, tokenizer)
        answers = judge(subject.model, data, tokenizer, batch_size=max(bench.config.batch_sizes), order=subject.order)
        if not isinstance(answers, Predictions):
            raise RecipeError(f"measurement.robustness: {subject.name} does not choose one class for a text; turn it off.")
        found[kind] = answers
    return found


def _measured(
    own: dict[str, Predictions], base: dict[str, Predictions] | None, config: RobustnessConfig, draws: int
) -> list[Measurement]:
    clean = own["clean"]
    rows = {kind: answers.correct.astype(np.float64) for kind, answers in own.items()}
    mean = np.mean([rows[kind] for kind in config.rates], axis=0)
    setting = f"{clean.samples}, seed {config.seed}, {draws} resamples"
    everything = f"{', '.join(_words(kind, rate) for kind, rate in config.rates.items())}, {setting}"
    values = [("clean", rows["clean"], setting)]
    values += [(kind, rows[kind], f"{_words(kind, rate)}, {setting}") for kind, rate in config.rates.items()]
    found = [_mean(f"robustness_{name}", each, where, draws, unit="%") for name, each, where in values]
    found.append(_mean("robustness", mean, everything, draws, unit="%"))
    found.append(_mean("robustness_loss", rows["clean"] - mean, everything, draws, unit="points"))
    if base is not None and base["clean"].samples == clean.samples:
        theirs = np.mean([base[kind].correct for kind in config.rates], axis=0)
        found.append(_mean("robustness_difference", mean - theirs, everything, draws, unit="points"))
        if theirs.any():
            found.append(_ratio("robustness_recovery", mean, theirs, everything, draws))
    return found


def _words(kind: str, rate: float) -> str:
    return f"{kind.replace('_', ' ')} {rate:g}"


def _mean(name: str, values: Floats, setting: str, draws: int, *, unit: str) -> Measurement:
    share = functools.partial(_share, values)
    drawn = 100 * draw_scores([share], len(values), draws)[0]
    return Measurement(name=name, value=100 * values.mean(), unit=unit, setting=setting, interval=interval(drawn))


def _ratio(name: str, values: Floats, base: Floats, setting: str, draws: int) -> Measurement:
    both = draw_scores([functools.partial(_share, values), functools.partial(_share, base)], len(values), draws)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = interval(100 * both[0] / both[1])
    return Measurement(name=name, value=100 * values.mean() / base.mean(), unit="%", setting=setting, interval=drawn)


def _share(values: Floats, weights: npt.NDArray[Any]) -> Floats:
    return np.asarray(weights @ values / len(values))
