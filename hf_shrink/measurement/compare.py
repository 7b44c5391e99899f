"""Several reports side by side: a row for each measurement, a column for each model, changes against a baseline."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from hf_shrink.errors import RecipeError
from hf_shrink.measurement.changes import against
from hf_shrink.measurement.comparison import Cell, Comparison, TableRow
from hf_shrink.measurement.measures import Row, rows
from hf_shrink.measurement.reports import artefact, read_report
from hf_shrink.measurement.values import Report

Condition = tuple[str, ...]


def compare(items: Iterable[Report | str | Path], *, baseline: int | str | None = None) -> Comparison:
    """Set reports against each other.

    Args:
        items: reports, or folders with ``hf_shrink_report.json``. One folder alone gives all its stages; of several
            folders each gives the model that it holds.
        baseline: index or name of the report the others are set against; None takes the one that a single folder
            names, else the first.

    Raises:
        RecipeError: nothing to compare, or no such baseline.
    """
    reports, named = _reports(list(items))
    base = _index(reports, baseline if baseline is not None else named)
    columns = [against(report, reports[base]) if i != base else report for i, report in enumerate(reports)]
    known = rows()
    keys = dict.fromkeys((m.name, m.conditions) for report in columns for m in report.measurements)
    order = list(known)
    ranked = sorted(keys, key=lambda key: order.index(key[0]) if key[0] in known else len(order))
    return Comparison(
        names=tuple(report.name for report in columns),
        titles=tuple(report.shown for report in columns),
        baseline=base,
        rows=_labelled([_row(key, known.get(key[0], Row(key[0])), columns, base) for key in ranked]),
        reports=tuple(columns),
    )


def _reports(items: list[Report | str | Path]) -> tuple[list[Report], str | int]:
    if not items:
        raise RecipeError("compare: nothing given; give reports, or folders that hold hf_shrink_report.json.")
    if len(items) == 1 and not isinstance(items[0], Report):
        stages, baseline = read_report(items[0])
        return stages, baseline if baseline is not None else 0
    return [item if isinstance(item, Report) else _last(Path(item)) for item in items], 0


def _last(folder: Path) -> Report:
    stages = read_report(folder)[0]
    last = stages[artefact(stages)]
    return last.model_copy(update={"name": folder.resolve().name, "title": ""})


def _index(reports: Sequence[Report], baseline: int | str) -> int:
    names = [report.name for report in reports]
    if isinstance(baseline, str) and baseline in names:
        return names.index(baseline)
    if isinstance(baseline, int) and -len(names) <= baseline < len(names):
        return baseline % len(names)
    raise RecipeError(f"compare: no baseline {baseline!r}; there are: {', '.join(names)}.")


def _row(key: tuple[str, Condition], row: Row, columns: Sequence[Report], base: int) -> TableRow:
    found = [next((m for m in report.measurements if (m.name, m.conditions) == key), None) for report in columns]
    first = found[base]
    reference = None if first is None else first.value
    cells = tuple(
        None if m is None else Cell(m, None if i == base else _ratio(row, m.value, reference)) for i, m in enumerate(found)
    )
    told = [part for part in key[1] if row.tells and part.startswith(f"{row.tells} ")]
    return TableRow(
        name=key[0],
        kind=row.label,
        label=", ".join([row.shown, *told]),
        better=row.better,
        setting=", ".join(part for part in key[1] if part not in told),
        cells=cells,
    )


def _ratio(row: Row, value: float, reference: float | None) -> float | None:
    return value / reference if row.against == "ratio" and reference else None


def _labelled(table: list[TableRow]) -> tuple[TableRow, ...]:
    """Rows that share a label were measured differently: their whole setting joins the label."""
    labels = [row.label for row in table]
    return tuple(row if labels.count(row.label) == 1 else row.relabelled(f"{row.label} ({row.setting})") for row in table)
