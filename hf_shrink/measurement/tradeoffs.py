"""What quality costs: the points of a plot, each plot of models that were measured alike."""

from collections.abc import Mapping
from dataclasses import dataclass

from hf_shrink.measurement.comparison import Comparison, TableRow
from hf_shrink.measurement.measures import rows

_COSTS: Mapping[str, tuple[str, float]] = {"bytes_on_disk": ("MB", 1e6), "latency_p50": ("ms", 1.0)}


@dataclass(frozen=True)
class Point:
    """One model.

    Attributes:
        label: its title.
        x, y: cost and quality, in the units of the plot.
        interval: 95% interval of the quality, or None.
        colour: number of its column, so that a model looks the same in every plot.
    """

    label: str
    x: float
    y: float
    interval: tuple[float, float] | None
    colour: int


@dataclass(frozen=True)
class Tradeoff:
    """One plot: quality over one cost, of models that share both rows of the table."""

    x_label: str
    y_label: str
    points: tuple[Point, ...]


def tradeoffs(table: Comparison) -> list[Tradeoff]:
    """Quality against bytes and against each latency; empty where no model has both.

    Quality is the first score of the table. Models judged on other samples, or timed in another setting, have rows of their
    own, and so plots of their own.
    """
    known = rows()
    first = next((row.name for row in table.rows if row.name in known and known[row.name].hub), None)
    scores = [row for row in table.rows if row.name == first]
    found = [_tradeoff(cost, score, table.titles) for cost in table.rows if cost.name in _COSTS for score in scores]
    return [each for each in found if each.points]


def _tradeoff(cost: TableRow, score: TableRow, titles: tuple[str, ...]) -> Tradeoff:
    unit, factor = _COSTS[cost.name]
    points = tuple(
        Point(titles[i], x.measurement.value / factor, y.measurement.value, y.measurement.interval, i)
        for i, (x, y) in enumerate(zip(cost.cells, score.cells, strict=True))
        if x is not None and y is not None
    )
    of = next((cell.measurement.unit for cell in score.cells if cell is not None), "")
    return Tradeoff(f"{cost.label} ({unit})", f"{score.label} ({of})", points)
