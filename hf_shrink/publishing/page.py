"""``report.html``: one file that shows a comparison in any browser, with nothing fetched and nothing run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hf_shrink.markdown import clean
from hf_shrink.measurement.compare import compare
from hf_shrink.measurement.comparison import Comparison
from hf_shrink.measurement.tradeoffs import tradeoffs
from hf_shrink.measurement.values import Report
from hf_shrink.publishing.card import verdict
from hf_shrink.publishing.private import published
from hf_shrink.publishing.svg import reliability, scatter
from hf_shrink.yaml_core import write

PAGE = "report.html"


@dataclass(frozen=True)
class Structure:
    """What one model holds: a line about the whole, and a table with its header first."""

    name: str
    heading: str
    grid: Sequence[Sequence[str]]


def page(
    title: str,
    table: Comparison,
    *,
    columns: Sequence[int],
    remarks: Sequence[str] = (),
    structures: Sequence[Structure] = (),
    recipes: Mapping[str, Mapping[str, Any]] | None = None,
    version: str | None = None,
) -> str:
    """A whole HTML page. All text is escaped; paths are cut to their last name; styles and charts are inside.

    Args:
        title: of the page.
        table: its columns, with their reports.
        columns: those that have a sentence of their own against the baseline.
        remarks: sentences about what got worse.
        structures: what the models hold, layer by layer.
        recipes: by the name of what they made.
        version: of hf_shrink.
    """
    table = compare([Report.from_stage(published(each.to_stage())) for each in table.reports], baseline=table.baseline)
    base = table.titles[table.baseline]
    told = [(table.titles[i], verdict(table, i)) for i in columns]
    lines = [(name, text) for name, each in told if (text := _sentence(each))]
    facts = {
        "title": title,
        "verdicts": [f"{name}: {text} {base}." if len(told) > 1 else f"{text} {base}." for name, text in lines],
        "remarks": list(remarks),
        "grid": table.grid(),
        "warnings": table.warnings,
        "settings": table.settings,
        "done": [(report.shown, [*report.did, *report.notes]) for report in table.reports if report.did or report.notes],
        "structures": [(each.name, each.heading, each.grid) for each in structures],
        "recipes": [(name, write(published(dict(recipe))).strip()) for name, recipe in (recipes or {}).items()],
        "version": version,
    }
    charts = {
        "scatters": [Markup(scatter(plot)) for plot in tradeoffs(table)],
        "reliabilities": [
            (clean(report.shown), Markup(reliability(report.reliability, report.shown)))
            for report in table.reports
            if report.reliability
        ],
    }
    template = _environment().get_template("page_template.html")
    return template.render(published(facts), **charts)


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        finalize=lambda value: value if isinstance(value, Markup) else _printable(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        autoescape=True,
    )


def _printable(value: object) -> str:
    """Text without controls; the lines of a recipe stay lines, with their spaces in front."""
    lines = str(value).split("\n")
    return "\n".join(line[: len(line) - len(line.lstrip(" "))] + clean(line) for line in lines)


def _sentence(told: Mapping[str, Any] | None) -> str:
    """``2.0x smaller on disk, 1.5x slower at batch 1, 97.5 % of the accuracy of``; empty where there is nothing to say."""
    if told is None:
        return ""
    words = {True: ("smaller on disk", "faster at"), False: ("larger on disk", "slower at")}
    parts = []
    for change in told["changes"]:
        size, speed = words[change["better"]]
        words_for = size if change["kind"] == "size" else f"{speed} {change['kind']}"
        parts.append(f"{change['factor']:.1f}x {words_for}")
    return ", ".join([*parts, *([told["quality"]] if told["quality"] else [])]) + (" of" if told["quality"] else " than")
