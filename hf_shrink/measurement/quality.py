"""How good a model's answers are, with intervals, and how much of a baseline's quality is left."""

import functools

import numpy as np
import numpy.typing as npt

from hf_shrink.measurement.answering import answers_of
from hf_shrink.measurement.answers import Answers
from hf_shrink.measurement.intervals import draw_scores, interval
from hf_shrink.measurement.scores import Score, agreements_of, scores_of
from hf_shrink.measurement.subjects import Bench
from hf_shrink.measurement.values import Measurement


def quality(bench: Bench) -> list[list[Measurement]]:
    """Every score of every subject that can answer and, on the same samples, its distance from the baseline."""
    found: list[list[Measurement]] = [[] for _ in bench.subjects]
    answers = answers_of(bench)
    for i, own in enumerate(answers):
        if own is not None:
            found[i] += _judged(own, answers[bench.baseline] if i != bench.baseline else None, bench.config.bootstrap)
    return found


def _judged(own: Answers, base: Answers | None, draws: int) -> list[Measurement]:
    both = [own] if base is None or base.samples != own.samples else [own, base]
    setting = f"{own.samples}, {draws} resamples"
    found = []
    for name, metric in scores_of(own).items():
        statistics = [functools.partial(metric.weighted, answers) for answers in both]
        scores = metric.scale * draw_scores(statistics, len(own), draws)
        values = [metric.scale * metric.whole(answers) for answers in both]
        found.append(_measured(name, values[0], metric.unit, setting, scores[0]))
        if len(values) == 2:
            found += _changes(name, metric, values, scores, setting)
    if len(both) == 2:
        for name, pair in agreements_of(own).items():
            same = functools.partial(pair.weighted, both[0], both[1])
            value = pair.scale * float(same(np.ones((1, len(own))))[0])
            found.append(_measured(name, value, pair.unit, setting, pair.scale * draw_scores([same], len(own), draws)[0]))
    return found


def _changes(name: str, metric: Score, values: list[float], scores: npt.NDArray[np.float64], setting: str) -> list[Measurement]:
    """The distance of the first model from the second, on the same resamples."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = scores[0] / scores[1]
    if metric.change == "ratio":
        return [_measured(f"{name}_ratio", values[0] / values[1], "x", setting, ratio)] if values[1] > 0 else []
    found = [_measured(f"{name}_difference", values[0] - values[1], "points", setting, scores[0] - scores[1])]
    if values[1] > 0:
        found.append(_measured(f"{name}_recovery", 100 * values[0] / values[1], "%", setting, 100 * ratio))
    return found


def _measured(name: str, value: float, unit: str, setting: str, scores: npt.NDArray[np.float64]) -> Measurement:
    return Measurement(name=name, value=value, unit=unit, setting=setting, interval=interval(scores))
