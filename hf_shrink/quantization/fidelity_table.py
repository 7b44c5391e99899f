"""What quantising did to each layer, for the terminal: a line a layer, with a small histogram, in 80 columns."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from hf_shrink.quantization.fidelity import LayerFidelity

BARS = 12
"""Columns of a histogram."""
_BLOCKS, _ASCII = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
_TITLES = ("layer", "weights", "mean", "deviat.", "out", "MSE", "dB", "bytes", "now")
_BELOW = "weights: 6 deviations around their mean; out: how many are further; dB: SQNR"
ROOM = 12
"""Letters of a name at least."""


class FidelityTable:
    """A table for each scheme; names are as long as the terminal has room for.

    Args:
        layers: in the model's order, which they keep within their scheme.
    """

    def __init__(self, layers: Sequence["LayerFidelity"]) -> None:
        self._layers = layers

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        blocks = _ASCII if options.ascii_only else _BLOCKS
        lines = [_line(layer, blocks) for layer in self._layers]
        widths = [max(map(len, column)) for column in zip(_TITLES[1:], *lines, strict=True)]
        room = max(options.max_width - sum(widths) - len(widths), ROOM)
        names = [shortened(layer.name, room) for layer in self._layers]
        for scheme in dict.fromkeys(layer.scheme for layer in self._layers):
            table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, title=Text(scheme), title_justify="left")
            for i, width in enumerate((max(map(len, names)), *widths)):
                table.add_column(_TITLES[i], justify="right" if i > 1 else "left", no_wrap=True, width=width)
            for layer, name, line in zip(self._layers, names, lines, strict=True):
                if layer.scheme == scheme:
                    table.add_row(*map(Text, (name, *line)))
            yield table
        yield Text(_BELOW)


def shortened(name: str, room: int) -> str:
    """``name`` in ``room`` letters: parts become initials from the left, ``b.e.l.0.attention.self.query``; numbers stay."""
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        if sum(map(len, parts)) + len(parts) - 1 <= room:
            break
        parts[i] = part if part.isdigit() else part[:1]
    short = ".".join(parts)
    return short if len(short) <= room else f"~{short[len(short) - room + 1 :]}"


def bars(counts: Sequence[int], blocks: str = _BLOCKS) -> str:
    """``BARS`` letters, the highest for the most weights; what is not empty is seen."""
    step = len(counts) // BARS
    sums = [sum(counts[start : start + step]) for start in range(0, len(counts), step)]
    most, full = max(sums), len(blocks) - 1
    return "".join(blocks[max(round(full * each / most), 1) if each else 0] for each in sums)


def short(number: float) -> str:
    """Three digits and a letter: ``16.4k``."""
    for unit in ("", "k", "M"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}G"


def _line(layer: "LayerFidelity", blocks: str) -> tuple[str, ...]:
    weights = (bars(layer.histogram, blocks), f"{layer.mean:.0e}", f"{layer.deviation:.1e}", short(layer.outliers))
    error = ("0", "exact") if layer.sqnr is None else (f"{layer.mse:.1e}", f"{layer.sqnr:.1f}")
    return (*weights, *error, *map(short, layer.bytes))
