"""What several reports look like: how sure each model may be of itself, and what its quality costs."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from hf_shrink.errors import RecipeError
from hf_shrink.markdown import clean
from hf_shrink.measurement.comparison import Comparison
from hf_shrink.measurement.tradeoffs import Tradeoff, tradeoffs
from hf_shrink.measurement.values import ReliabilityBin, Report
from hf_shrink.publishing.plots import COLOURS, INK, MARKERS, write_panels

Panel: TypeAlias = Callable[[Any], None]
"""Draws into the axes it is given."""


def plot_reliability(reports: Sequence[Report], folder: str | Path, *, name: str = "reliability") -> tuple[Path, ...]:
    """Accuracy over probability as ``NAME.png`` and ``NAME.svg``, one panel a classifier.

    Bars are the accuracy of the answers in a bin, dots stand at their mean probability; the fainter a bar, the fewer answers.
    On the diagonal a model is as often right as it says.

    Args:
        reports: those without ``reliability`` are left out.
        folder: made where it is missing.
        name: of the files, without an ending.

    Raises:
        RecipeError: none of the reports has bins.
        ResourceError: matplotlib is not installed, or the folder cannot be written.
    """
    draws: list[Panel] = [partial(_draw_bins, title=clean(r.shown), bins=r.reliability) for r in reports if r.reliability]
    if not draws:
        raise RecipeError("plots: no report has a reliability; measure a classifier on labelled data.")
    return write_panels(draws, Path(folder), name, columns=3, size=(3.4, 3.4))


def plot_tradeoffs(table: Comparison, folder: str | Path, *, name: str = "tradeoffs") -> tuple[Path, ...]:
    """Quality against bytes and against latency as ``NAME.png`` and ``NAME.svg``; models measured alike share a panel.

    Lines through the dots are 95% intervals. Arguments and ResourceError as in ``plot_reliability``.

    Raises:
        RecipeError: no model has both a quality and a cost.
    """
    draws: list[Panel] = [partial(_draw_tradeoff, plot=plot) for plot in tradeoffs(table)]
    if not draws:
        raise RecipeError("plots: no model has both a quality and a size or latency; compare runs, or measure with --recipe.")
    return write_panels(draws, Path(folder), name, columns=3, size=(4.4, 3.4))


def _draw_tradeoff(axes: Any, plot: Tradeoff) -> None:
    middle = max(point.x for point in plot.points) / 2
    for turn, point in enumerate(sorted(plot.points, key=lambda p: -p.y)):
        colour, marker = COLOURS[point.colour % len(COLOURS)], MARKERS[point.colour % len(MARKERS)]
        axes.plot([point.x], [point.y], color=colour, marker=marker, linestyle="none", markersize=7)
        if point.interval is not None:
            axes.plot([point.x, point.x], list(point.interval), color=colour, linewidth=1.2)
        to_left = point.x > middle
        place = (-7 if to_left else 7, 5 if turn % 2 == 0 else -11)
        words = {"color": colour, "fontsize": 8, "ha": "right" if to_left else "left"}
        axes.annotate(clean(point.label)[:30], (point.x, point.y), xytext=place, textcoords="offset points", **words)
    axes.set_xlabel(plot.x_label[:60])
    axes.set_ylabel(plot.y_label[:50])
    axes.set_xlim(0, 1.1 * max(point.x for point in plot.points))
    axes.margins(y=0.2)
    axes.grid(color=INK, alpha=0.25, linewidth=0.6)


def _draw_bins(axes: Any, title: str, bins: Sequence[ReliabilityBin]) -> None:
    most = max(each.count for each in bins)
    for each in bins:
        shade = 0.25 + 0.75 * each.count / most
        width = 100 * (each.high - each.low)
        axes.bar(100 * each.low, 100 * each.accuracy, width, align="edge", color=COLOURS[0], alpha=shade, linewidth=0)
    axes.plot([0, 100], [0, 100], color=INK, linestyle="--", linewidth=1)
    axes.plot([100 * b.confidence for b in bins], [100 * b.accuracy for b in bins], "o", color=COLOURS[1], markersize=4)
    axes.set_title(title[:40], fontsize=9)
    axes.set_xlabel("probability of the answer (%)")
    axes.set_ylabel("answers that are right (%)")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_aspect("equal")
