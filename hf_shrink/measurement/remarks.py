"""Sentences computed from the numbers: what got worse, and what the savings do not touch."""

import math
from collections.abc import Sequence

from hf_shrink.measurement.changes import same, scores
from hf_shrink.measurement.measures import Row, rows
from hf_shrink.measurement.numbers import digits, quantity
from hf_shrink.measurement.reports import artefact
from hf_shrink.measurement.values import Measurement, Report

_ZEROS = 0.05
"""Fraction of zeros from which they are worth a sentence; a few occur in any model."""
_EMBEDDINGS = 0.25
"""Fraction of embeddings from which they limit what shrinking the layers can save."""


def remarks(reports: Sequence[Report], *, baseline: int = 0) -> list[str]:
    """What a reader must not miss, one sentence each; empty where there is nothing of the kind.

    Reports behind the baseline are set against it and against the one before them (a step may lose what an earlier one
    won); reports in front of it are floors that nothing should fall below.
    """
    found: list[str] = []
    for i, report in enumerate(reports[baseline + 1 :], start=baseline + 1):
        found += worse(report, reports[baseline])
        found += worse(report, reports[i - 1])
    for floor in reports[:baseline]:
        for report in reports[baseline:]:
            found += _lower_scores(report, floor)
    found += _embeddings(reports[artefact(reports)])  # a graph does not tell its parameters
    found += [line for report in reports for line in (*_zeros(report), *_cut(report))]
    return list(dict.fromkeys(found))


def worse(report: Report, other: Report) -> list[str]:
    """A sentence for each number in which ``report`` is worse than ``other`` beyond the noise of that number."""
    known = rows()
    lines = _lower_scores(report, other)
    for own in report.measurements:
        theirs, row = same(other, own), known.get(own.name)
        if theirs is not None and row is not None and row.remark and row.against == "ratio" and theirs.value > 0:
            lines += _worse_ratio(report, other, (own, theirs), row)
        if theirs is not None and own.name in ("lm_eval", "lm_eval_loss"):
            lines += _lost_in_harness(report, other, own, theirs)
    return lines


def _lost_in_harness(report: Report, other: Report, own: Measurement, theirs: Measurement) -> list[str]:
    """A task of lm-eval that got worse. What may be chance is left to the table: tasks are many."""
    change = own.value - theirs.value
    if change == 0 or (change < 0) != (own.name == "lm_eval"):
        return []
    paired = same(report, own.model_copy(update={"name": f"{own.name}_change"}))
    around = None
    if paired is not None and paired.interval is not None and abs(paired.value - change) < 1e-9:
        around = paired.interval
    elif (
        own.stderr is not None and theirs.stderr is not None
    ):  # as if the examples were others: too wide rather than too narrow
        width = 1.96 * math.hypot(own.stderr, theirs.stderr)
        around = (change - width, change + width)
    if around is not None and around[0] <= 0 <= around[1]:
        return []
    said = "" if around is None else f" (95% interval of the change {around[0]:+.3f} to {around[1]:+.3f})"
    what = next(part.removeprefix("task ") for part in own.parts if part.startswith("task "))
    values = f"{digits(own.value)} against {digits(theirs.value)}"
    return [f"{report.shown}: {what} of lm-eval is worse than that of {other.shown}: {values}{said}."]


def _worse_ratio(report: Report, other: Report, pair: tuple[Measurement, Measurement], row: Row) -> list[str]:
    own, theirs = pair
    ratio = own.value / theirs.value
    if ratio <= 1 + row.noise if row.better == "lower" else ratio >= 1 - row.noise:
        return []
    where = "".join(f" at {part}" for part in own.parts if row.tells and part.startswith(f"{row.tells} "))
    values = f"{quantity(own.value, own.unit)} against {quantity(theirs.value, theirs.unit)}"
    unsure = _chance_of_ratio(report, own, ratio)
    return [f"{report.shown}: {row.shown}{where} is {ratio:.2f}x that of {other.shown} ({values}){unsure}."]


def _chance_of_ratio(report: Report, own: Measurement, ratio: float) -> str:
    """The paired interval of a ratio of scores, where it was measured against this very number."""
    paired = same(report, own.model_copy(update={"name": f"{own.name}_ratio"}))
    if paired is None or paired.interval is None or abs(paired.value - ratio) > 1e-9:
        return ""
    low, high = paired.interval
    return f" (95% interval of the ratio {low:.3f} to {high:.3f}{', so it may be chance' if low <= 1 <= high else ''})"


def _lower_scores(report: Report, other: Report) -> list[str]:
    known = rows()
    return [
        f"{report.shown}: {known[own.name].label} is {digits(theirs.value - own.value)} points below that of {other.shown}"
        f"{_chance(report, own, theirs)}."
        for own, theirs in scores(report, other)
        if known[own.name].remark and own.value < theirs.value
    ]


def _chance(report: Report, own: Measurement, theirs: Measurement) -> str:
    """The paired interval of a difference, where it was measured against this very number; else what its own one says."""
    paired = same(report, own.model_copy(update={"name": f"{own.name}_difference"}))
    if paired is None or paired.interval is None or abs(paired.value - (own.value - theirs.value)) > 1e-9:
        return " (inside its own 95% interval)" if own.interval and theirs.value <= own.interval[1] else ""
    low, high = paired.interval
    return f" (95% interval of the difference {low:+.1f} to {high:+.1f}{', so it may be chance' if high >= 0 else ''})"


def _embeddings(report: Report) -> list[str]:
    total, other = report.value("parameters"), report.value("parameters_non_embedding")
    if not total or other is None or (part := 1 - other / total) < _EMBEDDINGS:
        return []
    return [f"Embeddings are {100 * part:.0f}% of the parameters of {report.shown}; shrinking its layers does not touch them."]


def _zeros(report: Report) -> list[str]:
    total, other = report.value("parameters"), report.value("parameters_non_zero")
    if not total or other is None or (part := 1 - other / total) < _ZEROS:
        return []
    return [f"{report.shown}: {100 * part:.0f}% of the parameters are zeros, which take as many bytes as other values."]


def _cut(report: Report) -> list[str]:
    cut = report.find("lm_eval_cut")
    if cut is None:
        return []
    return [f"{report.shown}: {cut.value:,} requests to lm-eval ({cut.setting}) were too long and lost their beginning."]
