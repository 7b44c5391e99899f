"""The quality gate: whether what is left of a baseline's quality is enough, stage by stage."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.measurement.changes import same
from hf_shrink.measurement.config import GateConfig
from hf_shrink.measurement.entities import is_scheme
from hf_shrink.measurement.estimates import Estimates
from hf_shrink.measurement.label_sets import LabelSets
from hf_shrink.measurement.masked_tokens import MaskedTokens
from hf_shrink.measurement.measures import Row, rows
from hf_shrink.measurement.next_tokens import NextTokens
from hf_shrink.measurement.numbers import digits, quantity, spread
from hf_shrink.measurement.predictions import Predictions
from hf_shrink.measurement.scores import SCORES, Score
from hf_shrink.measurement.sentence_vectors import ScoredPairs
from hf_shrink.measurement.spans import Spans
from hf_shrink.measurement.tags import EntityTags, Tags
from hf_shrink.measurement.values import Measurement, Report
from hf_shrink.measurement.written import Written
from hf_shrink.tables import nearest
from hf_shrink.tasks import SENTENCES

KINDS: Mapping[str, type] = {
    "text-classification": Predictions,
    "multi-label-classification": LabelSets,
    "text-regression": Estimates,
    "token-classification": Tags,
    "causal-lm": NextTokens,
    "masked-lm": MaskedTokens,
    "question-answering": Spans,
    SENTENCES: ScoredPairs,
    "seq2seq": Written,
}
"""The answers that each task is judged by; tags that name entities are ``EntityTags``."""

_EXACT = 1e-9
"""Relative room for sums of floats: a score that is the bound, but for rounding, holds."""


@dataclass(frozen=True)
class Judged:
    """One stage before the gate.

    Attributes:
        value: its score, in the gate's unit.
        held: whether that is good enough.
        unsure: whether a 95% interval covers the bound, so that another test set may say otherwise.
        why: one sentence with the numbers.
    """

    name: str
    title: str
    value: float
    interval: tuple[float, float] | None
    held: bool
    unsure: bool
    why: str


@dataclass(frozen=True)
class Verdict:
    """The gate applied to every stage behind the baseline, in order.

    Attributes:
        rule: what was asked for, in words.
        bound: the worst score that holds; None where the baseline is not above 0, of which no fraction can be kept.
    """

    metric: str
    unit: str
    rule: str
    baseline: str
    bound: float | None
    on_miss: str
    stages: tuple[Judged, ...]

    def held(self, name: str) -> bool:
        """Whether the stage of that name is good enough."""
        return next(stage.held for stage in self.stages if stage.name == name)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the report."""
        return asdict(self)


def score_for(config: GateConfig, task: str, label_names: Sequence[str]) -> Score:
    """The score that decides.

    Raises:
        RecipeError: there is no such score, the task does not measure it, or the bound could never be missed.
    """
    kind = EntityTags if KINDS[task] is Tags and is_scheme(label_names) else KINDS[task]
    measured = {score.name: score for score in SCORES if issubclass(kind, score.of)}
    name = config.metric if config.metric is not None else next(iter(measured))
    if name not in measured:
        there = name in {score.name for score in SCORES}
        says = f"{task} does not measure {name!r} on these data" if there else f"unknown metric {name!r}"
        raise RecipeError(f"gate.metric: {says}.{nearest(name, measured)} Measured here: {', '.join(measured)}.")
    if config.max_drop is not None and measured[name].unit == "%" and config.max_drop >= 100:
        raise RecipeError(f"gate.max_drop: {config.max_drop:g} points of {name} can never be lost; give less than 100.")
    return measured[name]


def rule_words(config: GateConfig, score: Score, baseline: str) -> str:
    """What a gate asks for: ``accuracy at least 98 % of the teacher's``."""
    row = rows()[score.name]
    lower = row.better == "lower"
    if config.keep is not None:
        part = f"{digits(100 * config.keep)} %"
        return (
            f"{row.label} at most that of the {baseline} / {config.keep:g}"
            if lower
            else f"{row.label} at least {part} of the {baseline}'s"
        )
    unit = "points" if score.unit == "%" else score.unit
    way = "above" if lower else "below"
    return f"{row.label} at most {config.max_drop:g} {unit} {way} that of the {baseline}"


def gate_words(
    config: GateConfig, task: str, label_names: Sequence[str], stages: Sequence[str], other_tokens: bool
) -> tuple[str, ...]:
    """What the gate will do, for a plan.

    Args:
        stages: those that make a model, in order.
        other_tokens: whether the vocabulary is cut.

    Raises:
        RecipeError: as ``score_for``; or nothing could ever be judged.
    """
    score = score_for(config, task, label_names)
    baseline = "teacher" if "teacher" in stages else "student"
    if stages[-1] == baseline:
        raise RecipeError(f"gate: would be ignored: no stage comes after the {baseline}, which is its baseline. Remove it.")
    if other_tokens and task in ("causal-lm", "masked-lm", "seq2seq"):
        raise RecipeError(
            "gate: a smaller vocabulary changes the tokens that are judged, so nothing can be compared; remove one."
        )
    then = {
        "stop": "where it does not hold, ends with exit code 7 and publishes nothing",
        "roll_back": "where it does not hold, keeps the last stage that does; with exit code 7 if none does",
    }
    return (f"gate: {rule_words(config, score, baseline)}; {then[config.on_miss]}",)


def judge_gate(config: GateConfig, score: Score, reports: Sequence[Report], *, baseline: int) -> Verdict:
    """Apply a gate to the reports behind the baseline.

    A paired interval of the change decides whether a verdict is ``unsure``, where there is one; else the score's own.

    Args:
        score: of ``score_for``.
        reports: of one run, in order; those in front of the baseline are floors and are not judged.
        baseline: index of the report that the others are set against.

    Raises:
        MismatchError: a stage was not judged on the samples of the baseline.
    """
    base, row = reports[baseline].find(score.name), rows()[score.name]
    if base is None:
        raise MismatchError(f"gate: {score.name} of {reports[baseline].shown} was not measured; remove gate, or measure again.")
    bound = _bound(config, base.value, row)
    return Verdict(
        metric=score.name,
        unit=score.unit,
        rule=rule_words(config, score, reports[baseline].name),
        baseline=reports[baseline].name,
        bound=bound,
        on_miss=config.on_miss,
        stages=tuple(_judged(report, base, config, row, bound) for report in reports[baseline + 1 :]),
    )


def _bound(config: GateConfig, base: float, row: Row) -> float | None:
    sign = -1 if row.better == "lower" else 1
    if config.max_drop is not None:
        return base - sign * config.max_drop
    assert config.keep is not None, "the config has checked this"
    if base <= 0 and sign > 0:
        return None
    return base * config.keep**sign


def _judged(report: Report, base: Measurement, config: GateConfig, row: Row, bound: float | None) -> Judged:
    own = same(report, base)
    if own is None:
        raise MismatchError(
            f"gate: {base.name} of {report.shown} was not measured on the baseline's samples, so nothing can be compared.\n"
            "Remove gate, or what changes the samples: a smaller vocabulary changes the tokens of a language model."
        )
    shown = f"{row.label} of {report.shown} is {quantity(own.value, own.unit)}"
    shown += f" {spread(own.interval, own.unit)}" if own.interval else ""
    if bound is None:
        why = f"{shown}, and no fraction of a baseline of {quantity(base.value, base.unit)} can be kept: use max_drop."
        return Judged(report.name, report.shown, own.value, own.interval, False, False, why)
    room, lower = _EXACT * max(abs(bound), abs(base.value)), row.better == "lower"
    held = own.value <= bound + room if lower else own.value >= bound - room
    unsure = _covers(report, own, config, row, bound)
    why = f"{shown}; {'at most' if lower else 'at least'} {quantity(bound, own.unit)} is needed"
    why += " (a 95% interval covers the bound, so it may be chance)." if unsure else "."
    return Judged(report.name, report.shown, own.value, own.interval, held, unsure, why)


def _covers(report: Report, own: Measurement, config: GateConfig, row: Row, bound: float) -> bool:
    """Whether the paired interval, or where there is none the score's own, has the bound inside."""
    if config.keep is not None:
        change, edge = ("ratio", 1 / config.keep) if row.against == "ratio" else ("recovery", 100 * config.keep)
    else:
        assert config.max_drop is not None, "the config has checked this"
        change, edge = "difference", -config.max_drop
    paired = same(report, own.model_copy(update={"name": f"{own.name}_{change}"}))
    if paired is None or paired.interval is None:
        paired, edge = own, bound
    return paired.interval is not None and paired.interval[0] <= edge <= paired.interval[1]
