"""What was found in a saved model, part by part, as a table."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from hf_shrink.adapters import Adapter


@dataclass(frozen=True)
class Part:
    """One transformer layer, the embeddings, or the rest.

    Attributes:
        heads: query heads of each attention block; a decoder that also reads an encoder has two. Empty outside layers and
            where the family is not known.
        kv_heads: key-value heads of the same blocks; fewer where queries share them.
        ffn_width: neurons of the feed-forward block; None where there is none or the family is not known.
        parameters: stored numbers of weights and biases; a packed byte holds two 4-bit ones.
        zeros: fraction of those numbers that are zero; None where they are packed.
        bytes: with everything that belongs to them, scales too.
        dtypes: how weights are stored.
    """

    name: str
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    ffn_width: int | None
    parameters: int
    zeros: float | None
    bytes: int
    dtypes: tuple[str, ...]

    @property
    def heads_text(self) -> str:
        """``12``, ``9 (3 KV)``, or ``4 + 2`` for two blocks."""
        pairs = zip(self.heads, self.kv_heads, strict=True)
        return " + ".join(str(heads) if heads == kv else f"{heads} ({kv} KV)" for heads, kv in pairs)


@dataclass(frozen=True)
class Inspection:
    """A folder's weights, part by part, and what it takes to load them.

    Attributes:
        quantization: how weights are stored in fewer bits; None where they are not.
        kept: of a quantised model each layer that is not, with the reason that its config records.
        adapter: what lies beside the model and belongs to it; no part counts it.
    """

    model_type: str
    loads_with: str
    quantization: str | None
    parts: tuple[Part, ...]
    kept: Mapping[str, str] = field(default_factory=dict)
    adapter: Adapter | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return asdict(self)

    @property
    def heading(self) -> str:
        """``bert, bitsandbytes 8-bit, loads with plain transformers``."""
        stored = f", {self.quantization}" if self.quantization else ""
        return f"{self.model_type}{stored}, loads with {self.loads_with}"

    def notes(self) -> tuple[str, ...]:
        """What no row says: layers that are not quantised, those of one kind together, and an adapter."""
        alike = Counter((re.sub(r"\.\d+(?=\.|$)", ".*", name), reason) for name, reason in self.kept.items())
        notes = [f"{name}{f' ({count} of them)' if count > 1 else ''}: {reason}" for (name, reason), count in alike.items()]
        notes = [f"not quantised: {note}" for note in notes]
        return (*notes, *([] if self.adapter is None else [self.adapter.words]))

    def grid(self) -> list[list[str]]:
        """Header and a line a part, as text."""
        return [["part", "heads", "FFN width", "parameters", "zeros", "bytes", "dtypes"], *map(_line, self.parts)]

    def rich(self) -> Table:
        """A table for the terminal."""
        header, *lines = self.grid()
        caption = Text("\n".join(self.notes())) if self.notes() else None
        table = Table(*header, title=self.heading, caption=caption, caption_justify="left")
        for line in lines:
            table.add_row(*line)
        return table


def _line(part: Part) -> list[str]:
    zeros = "" if part.zeros is None else f"{100 * part.zeros:.1f}%"
    width = "" if part.ffn_width is None else str(part.ffn_width)
    return [part.name, part.heads_text, width, f"{part.parameters:,}", zeros, f"{part.bytes:,}", ", ".join(part.dtypes)]
