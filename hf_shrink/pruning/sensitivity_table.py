"""What a measurement of sensitivity gives: one point a mask and fraction, as JSON, as Markdown and for the terminal."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from hf_shrink.grids import as_markdown, as_rich


@dataclass(frozen=True)
class Words:
    """What the quality is, for people.

    Attributes:
        name: e.g. ``log-likelihood``; higher is better.
        unit: of quality and loss.
        setting: how it was measured.
        samples: how many; None where that means nothing.
    """

    name: str = "quality"
    unit: str = ""
    setting: str = ""
    samples: int | None = None


@dataclass(frozen=True)
class Point:
    """What one mask costs at one fraction, all others being whole.

    Attributes:
        group: name of the mask.
        structure: of the entry that asks for it.
        kind: the mask's name with ``*`` for the layer: equal for the same part of every layer of a stack.
        layer: its layer in the stack, from 0; None where it has none or is in all of them.
        fraction: removed of this mask, after rounding.
        removed: units, blocks or weights that is.
        entries: of the mask in all.
        quality: with these removed.
        loss: quality of the whole model minus ``quality``; below 0 where removing helped.
        parameters: removed with them, or set to zero where the structure leaves zeros.
        macs: multiply-accumulates a token in their projections. Products between tokens, which grow with the length of the
            text, are not counted; those with zeros are, though only special kernels save them.
        milliseconds: of latency saved; None where that was not measured.
        others: further scores at this point, by name.
    """

    group: str
    structure: str
    kind: str
    layer: int | None
    fraction: float
    removed: int
    entries: int
    quality: float
    loss: float
    parameters: int
    macs: int
    milliseconds: float | None = None
    others: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sensitivity:
    """Quality lost by each mask at each fraction.

    Attributes:
        points: by mask in the order of the model, then by fraction, each fraction above 0 and once.
        dense: quality with nothing removed.
        words: what that quality is.
        others: further scores with nothing removed.
        milliseconds: latency with nothing removed; None where it was not measured.
        latency_setting: how it was.
        notes: what a reader of the numbers should know.
    """

    points: tuple[Point, ...]
    dense: float
    words: Words = Words()
    others: Mapping[str, float] = field(default_factory=dict)
    milliseconds: float | None = None
    latency_setting: str = ""
    notes: tuple[str, ...] = ()

    def by_group(self) -> dict[str, tuple[Point, ...]]:
        """The points of each mask, by its name."""
        found: dict[str, list[Point]] = {}
        for point in self.points:
            found.setdefault(point.group, []).append(point)
        return {name: tuple(points) for name, points in found.items()}

    def slopes(self) -> dict[str, float]:
        """Quality lost per fraction removed, for each mask: the least-squares line through the origin and its points."""
        return {
            name: sum(p.fraction * p.loss for p in points) / sum(p.fraction**2 for p in points)
            for name, points in self.by_group().items()
        }

    def noting(self, *notes: str) -> Self:
        """The same result with more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def timed(self, setting: str) -> Self:
        """The same result with how its latency was measured."""
        return replace(self, latency_setting=setting)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return asdict(self) | {"loss_per_fraction": self.slopes()}

    def grid(self) -> list[list[str]]:
        """Header and one line a mask: its loss at each fraction, and that per fraction removed."""
        groups, slopes = self.by_group(), self.slopes()
        wide = max((len(points) for points in groups.values()), default=0)
        unit = f", {self.words.unit}" if self.words.unit else ""
        header = ["mask", "entries", *[f"loss at {i + 1}" for i in range(wide)], f"loss per fraction{unit}"]
        lines = [header]
        for name, points in groups.items():
            cells = [f"{p.loss:+.4f} ({100 * p.fraction:.1f} %)" for p in points] + [""] * (wide - len(points))
            lines.append([name, str(points[0].entries), *cells, f"{slopes[name]:+.4f}"])
        return lines

    def captions(self) -> tuple[str, ...]:
        """What the numbers are, a line each."""
        whole = ", ".join(f"{name} {value:.4g}" for name, value in self.others.items())
        parts = (self.words.setting, f"{self.words.samples} samples" if self.words.samples else "")
        setting = ", ".join(part for part in parts if part)
        lines = [f"{self.words.name} of the whole model: {self.dense:.4f} {self.words.unit}".rstrip()]
        lines[0] += f" ({whole})" if whole else ""
        lines += [f"setting: {setting}"] if setting else []
        if self.milliseconds is not None:
            lines.append(f"latency of the whole model: {self.milliseconds:.3g} ms ({self.latency_setting})")
        return (*lines, *self.notes)

    def markdown(self) -> str:
        """A pipe table with the captions below it."""
        return as_markdown(self.grid(), self.captions())

    def rich(self) -> Any:
        """A ``rich.table.Table`` with the captions below it."""
        return as_rich(self.grid(), self.captions())
