"""The table itself: as Markdown, for the terminal, as JSON."""

import csv
import dataclasses
import io
from dataclasses import dataclass
from typing import Any

from hf_shrink.grids import as_markdown, as_rich
from hf_shrink.markdown import clean
from hf_shrink.measurement.numbers import quantity, spread
from hf_shrink.measurement.values import PRECISIONS, Measurement, Report


@dataclass(frozen=True)
class Cell:
    """A measurement, and its ratio to the baseline's where the row has one."""

    measurement: Measurement
    ratio: float | None = None

    @property
    def text(self) -> str:
        """E.g. ``11.2 M (0.49x)`` or ``78.3 % [76.2, 80.3]``."""
        shown = quantity(self.measurement.value, self.measurement.unit)
        around = f" {spread(self.measurement.interval, self.measurement.unit)}" if self.measurement.interval else ""
        return shown + around + (f" ({self.ratio:.2f}x)" if self.ratio is not None else "")


@dataclass(frozen=True)
class TableRow:
    """One measurement of all columns; an empty cell is None. ``label`` is ``kind`` with the part of the setting it tells."""

    name: str
    kind: str
    label: str
    better: str | None
    setting: str
    cells: tuple[Cell | None, ...]

    @property
    def setting_told(self) -> str:
        """The setting with the part of it that the label tells, e.g. ``batch 32`` or ``task arc_easy: acc``."""
        told = self.label.removesuffix(f" ({self.setting})").rpartition(", ")[2] if ", " in self.label else ""
        return ", ".join(filter(None, [told if told.startswith(("batch ", "task ")) else "", self.setting]))

    def relabelled(self, label: str) -> "TableRow":
        """The same row under another label."""
        return dataclasses.replace(self, label=label)


@dataclass(frozen=True)
class Comparison:
    """Columns are models, rows are measurements; ratios and differences are against column ``baseline``."""

    names: tuple[str, ...]
    titles: tuple[str, ...]
    baseline: int
    rows: tuple[TableRow, ...]
    reports: tuple[Report, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What has several rows because it was measured differently, a sentence each."""
        told = [row.label.removesuffix(f" ({row.setting})") for row in self.rows]
        return tuple(
            f"{label}: measured in {told.count(label)} different ways or on different data, a row each; numbers of different "
            "rows do not compare."
            for label in dict.fromkeys(label for label in told if told.count(label) > 1)
        )

    @property
    def precisions(self) -> tuple[str, ...]:
        """How each column's weights are stored, as its measurements say; empty where none does."""
        columns = zip(*(row.cells for row in self.rows), strict=True) if self.rows else [()] * len(self.names)
        parts = [[p for cell in column if cell for p in cell.measurement.parts if p in PRECISIONS] for column in columns]
        return tuple(found[0] if found else "" for found in parts)

    @property
    def settings(self) -> tuple[str, ...]:
        """How the rows were measured: a line for each setting, with the rows it holds for."""
        lines: dict[str, dict[str, None]] = {}
        for row in self.rows:
            if row.setting and not row.label.endswith(f"({row.setting})"):
                lines.setdefault(row.setting, {})[row.kind] = None
        return tuple(f"{', '.join(labels)}: {setting}" for setting, labels in lines.items())

    def grid(self) -> list[list[str]]:
        """Header and rows as plain text; an empty string where nothing was measured."""
        titles = [f"{title} (baseline)" if i == self.baseline else title for i, title in enumerate(self.titles)]
        stored = [["weights stored in", *self.precisions]] if any(self.precisions) else []
        body = [[row.label, *(cell.text if cell else "" for cell in row.cells)] for row in self.rows]
        return [["", *titles], *stored, *body]

    def markdown(self) -> str:
        """A pipe table, every cell escaped, and the settings below it."""
        return as_markdown(self.grid(), (*self.warnings, *self.settings))

    def rich(self) -> Any:
        """A ``rich.table.Table``, with the settings as its caption."""
        return as_rich(self.grid(), (*self.warnings, *self.settings))

    def csv(self) -> str:
        """One line a number, with a header: who, what, how, value, unit, interval and ratio to the baseline."""
        out = io.StringIO()
        lines = csv.writer(out, lineterminator="\n")
        lines.writerow(["model", "measurement", "setting", "precision", "value", "unit", "low", "high", "ratio"])
        for row in self.rows:
            for title, precision, cell in zip(self.titles, self.precisions, row.cells, strict=True):
                if cell is not None:
                    m = cell.measurement
                    low, high = m.interval or ("", "")
                    ratio = "" if cell.ratio is None else cell.ratio
                    lines.writerow([_plain(title), row.name, row.setting_told, precision, m.value, m.unit, low, high, ratio])
        return out.getvalue()

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data; a missing measurement is None."""
        columns = zip(self.names, self.titles, self.precisions, strict=True)
        return {
            "baseline": self.names[self.baseline],
            "columns": [{"name": n, "title": t, "precision": p} for n, t, p in columns],
            "rows": [
                {"name": row.name, "label": row.label, "better": row.better, "setting": row.setting}
                | {"cells": [_cell(cell) for cell in row.cells]}
                for row in self.rows
            ],
        }


def _plain(text: str) -> str:
    """One clean line that no spreadsheet takes for a formula."""
    line = clean(text)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


def _cell(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    plain = cell.measurement.model_dump(mode="json", include={"value", "unit", "interval", "stderr"}, exclude_none=True)
    return plain | ({} if cell.ratio is None else {"ratio": cell.ratio})
