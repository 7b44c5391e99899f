"""Small charts as SVG inside a page: in the page's own letters and colours, so that they follow light and dark."""

import html
from collections.abc import Sequence

from hf_shrink.markdown import clean
from hf_shrink.measurement.numbers import digits
from hf_shrink.measurement.tradeoffs import Point, Tradeoff
from hf_shrink.measurement.values import ReliabilityBin

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 250, 52, 14, 14, 44
_COLOURS = 4
_LETTER, _LINE = 6.2, 13.0
"""Room that a letter and a line of a label take."""


def scatter(plot: Tradeoff) -> str:
    """Quality over cost: a dot a model with its name and its 95% interval.

    Classes ``c0`` to ``c3`` are the colours; labels give way to each other downwards.
    """
    xs = _ticks([0.0, *(p.x for p in plot.points)])
    ys = _ticks([value for p in plot.points for value in (p.y, *(p.interval or ()))])
    frame = _Frame((xs[0], xs[-1]), (ys[0], ys[-1]))
    parts = [*frame.axes(xs, ys, plot.x_label, plot.y_label)]
    for point in plot.points:
        x, y, colour = frame.x(point.x), frame.y(point.y), f"c{point.colour % _COLOURS}"
        if point.interval is not None:
            low, high = map(frame.y, point.interval)
            parts.append(f'<line class="{colour} thin" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        parts.append(f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
    parts += _labels(plot.points, frame)
    return _svg(parts, f"{plot.y_label} over {plot.x_label}")


def reliability(bins: Sequence[ReliabilityBin], title: str) -> str:
    """Accuracy over probability: a bar a bin, fainter where there are fewer answers, and the diagonal."""
    frame, most = _Frame((0.0, 100.0), (0.0, 100.0)), max(each.count for each in bins)
    ticks = [0.0, 25.0, 50.0, 75.0, 100.0]
    parts = frame.axes(ticks, ticks, "probability of the answer (%)", "answers that are right (%)")
    for each in bins:
        left, right, top = frame.x(100 * each.low), frame.x(100 * each.high), frame.y(100 * each.accuracy)
        shade = 0.25 + 0.75 * each.count / most
        size = f'width="{right - left:.1f}" height="{frame.y(0) - top:.1f}"'
        parts.append(f'<rect class="c0" opacity="{shade:.2f}" x="{left:.1f}" y="{top:.1f}" {size}/>')
    ends = f'x1="{frame.x(0):.1f}" y1="{frame.y(0):.1f}" x2="{frame.x(100):.1f}" y2="{frame.y(100):.1f}"'
    return _svg([*parts, f'<line class="axis dashed" {ends}/>'], f"reliability of {title}")


class _Frame:
    """Where the values of two axes lie in the picture."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self._x, self._y = x, y

    def x(self, value: float) -> float:
        low, high = self._x
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self._y
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self, xs: Sequence[float], ys: Sequence[float], x_label: str, y_label: str) -> list[str]:
        left, right, top, bottom = _LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM
        parts = [f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>']
        for y in ys:
            parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{self.y(y):.1f}" y2="{self.y(y):.1f}"/>')
            parts.append(f'<text class="small" text-anchor="end" x="{left - 6}" y="{self.y(y) + 4:.1f}">{digits(y)}</text>')
        for x in xs:
            parts.append(f'<text class="small" text-anchor="middle" x="{self.x(x):.1f}" y="{bottom + 15}">{digits(x)}</text>')
        middle = (top + bottom) / 2
        turned = f'transform="translate(12 {middle:.0f}) rotate(-90)"'
        parts.append(f'<text text-anchor="middle" x="{(left + right) / 2:.0f}" y="{_HEIGHT - 8}">{_text(x_label)}</text>')
        return [*parts, f'<text text-anchor="middle" {turned}>{_text(y_label, 36)}</text>']


def _labels(points: Sequence[Point], frame: _Frame) -> list[str]:
    taken: list[tuple[float, float, float]] = []
    parts = []
    for point in sorted(points, key=lambda p: -p.y):
        x, y, text = frame.x(point.x), frame.y(point.y) - 6, clean(point.label)[:26]
        room = _LETTER * len(text)
        to_right = x + 8 + room < _WIDTH
        left = x + 8 if to_right else max(0.0, x - 8 - room)
        while any(abs(y - other) < _LINE and left < end and start < left + room for start, end, other in taken):
            y += 2
        taken.append((left, left + room, y))
        parts.append(f'<text class="c{point.colour % _COLOURS}" x="{left:.1f}" y="{y:.1f}">{_text(text)}</text>')
    return parts


def _ticks(values: Sequence[float]) -> list[float]:
    """Three to seven round numbers that hold all values between them."""
    low, high = min(values), max(values)
    span = high - low or abs(high) or 1.0
    power = 10.0 ** (len(f"{int(span)}") - 1) if span >= 1 else 10.0 ** -len(f"{int(1 / span)}")
    step = next(power * factor for factor in (0.2, 0.5, 1.0, 2.0, 5.0, 10.0) if span / (power * factor) <= 5)
    first = int(low // step)
    last = int(-(-high // step))
    return [round(step * i, 9) for i in range(first, max(last, first + 1) + 1)]


def _svg(parts: Sequence[str], title: str) -> str:
    inner = "".join(parts)
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_text(title, 200)}">{inner}</svg>'


def _text(text: str, most: int = 60) -> str:
    line = clean(text)
    return html.escape(line if len(line) <= most else f"{line[: most - 1]}…")
