"""What ``bits: auto`` decided: one line a layer with its reason, and what KL costs in bytes; for programs and for people."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType

from hf_shrink.grids import as_markdown, as_rich
from hf_shrink.quantization.fidelity_table import ROOM, shortened


@dataclass(frozen=True)
class LayerBits:
    """One layer.

    Attributes:
        name: in the model.
        bits: 4 or 8; 16 for the floats it had.
        bytes: of its weight in the file, with scales.
        kl_4, kl_8: what the model loses where only this layer has so many bits, in nats; None where it cannot.
    """

    name: str
    bits: int
    bytes: int
    kl_4: float | None
    kl_8: float | None

    @property
    def reason(self) -> str:
        """Why it has as many bits as it has."""
        four = "cannot have 4 bits" if self.kl_4 is None else f"alone loses {self.kl_4:.2e} nats in 4 bits"
        return four if self.kl_8 is None else f"{four}, {self.kl_8:.2e} in 8"


@dataclass(frozen=True)
class Trade:
    """One choice of bits for all layers.

    Attributes:
        bytes: of the weights file.
        predicted: sum of the layers' own losses, in nats.
        kl: measured on the stored model; None where it was not stored.
    """

    bytes: int
    predicted: float
    kl: float | None = None

    @property
    def loss(self) -> float:
        """The measured KL where there is one, else the predicted."""
        return self.predicted if self.kl is None else self.kl


@dataclass(frozen=True)
class MixedPlan:
    """How the bits were given out.

    Attributes:
        layers: those that can be quantised, in the model's order.
        kept: name -> reason of every other projection.
        trades: every choice on the way from the fewest bits to the most, by bytes.
        measured: ``fewest bits`` and ``chosen``, as they are stored.
        positions: answers that each KL is a mean over.
    """

    layers: tuple[LayerBits, ...]
    kept: Mapping[str, str]
    trades: tuple[Trade, ...]
    measured: Mapping[str, Trade]
    positions: int

    @property
    def in_float(self) -> dict[str, str]:
        """Every layer that is not quantised, with its reason."""
        return {**self.kept, **{layer.name: layer.reason for layer in self.layers if layer.bits == 16}}

    def record(self) -> dict[str, dict[str, Any]]:
        """Bits and reason of each layer, for ``config.json`` and the report."""
        return {layer.name: {"bits": layer.bits, "reason": layer.reason} for layer in self.layers}

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return asdict(self)

    def grid(self) -> list[list[str]]:
        """Header and one line a layer."""
        lines = [["layer", "bits", "bytes", "KL alone in 4 bits", "in 8 bits"]]
        for layer in self.layers:
            losses = ["-" if kl is None else f"{kl:.2e}" for kl in (layer.kl_4, layer.kl_8)]
            lines.append([layer.name, "float" if layer.bits == 16 else str(layer.bits), f"{layer.bytes:,}", *losses])
        return lines

    def captions(self) -> tuple[str, ...]:
        """What came out, a line each."""
        counts = Counter(layer.bits for layer in self.layers)
        widths = ", ".join(f"{counts[bits]} in {'float' if bits == 16 else f'{bits} bits'}" for bits in sorted(counts))
        lines = [f"{len(self.layers)} layers: {widths}; KL is a mean over {self.positions:,} answers, in nats"]
        for name, trade in self.measured.items():
            sizes = f"{trade.bytes / 1e6:.2f} MB, KL {trade.loss:.4g}"
            lines.append(f"{name}: {sizes} (sum of the layers' own: {trade.predicted:.4g})")
        return tuple(lines)

    def markdown(self) -> str:
        """A pipe table with the captions below it."""
        return as_markdown(self.grid(), self.captions())

    def rich(self) -> "MixedTable":
        """For the terminal."""
        return MixedTable(self)


class MixedTable:
    """A line a layer, with the captions below; names are as long as the terminal has room for."""

    def __init__(self, plan: MixedPlan) -> None:
        self._plan = plan

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        grid = self._plan.grid()
        numbers = [max(map(len, column)) + len(" | ") for column in zip(*grid, strict=True)][1:]
        room = max(options.max_width - sum(numbers) - len("|  |"), ROOM)
        yield as_rich([[shortened(line[0], room), *line[1:]] for line in grid], self._plan.captions())
