"""What a plan consists of: stages, what each does and leaves, and how that reads."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.text import Text


@dataclass(frozen=True)
class StagePlan:
    """One stage: what it does, what comes out, where it goes.

    Attributes:
        does: one line per thing.
        leaves: what stays as it is, by module name, with the reason.
        parameters: expected number, or None where the stage makes no model.
        bytes: expected size of the weights on disk, or None.
        writes: folder or files, below output_dir.
    """

    name: str
    does: tuple[str, ...]
    leaves: dict[str, str]
    parameters: int | None
    bytes: int | None
    writes: str

    def lines(self) -> Iterator[str]:
        """Heading, then what is done and what is left, layers of one kind together."""
        facts = [] if self.parameters is None else [f"{self.parameters:,} parameters"]
        facts += [] if self.bytes is None else [f"{self.bytes / 1e6:.1f} MB"]
        facts += [f"writes {self.writes}"] if self.writes else []
        yield f"{self.name}: {', '.join(facts)}" if facts else f"{self.name}:"
        yield from (f"  {line}" for line in self.does)
        alike = Counter((re.sub(r"\.\d+(?=\.|$)", ".*", name), reason) for name, reason in self.leaves.items())
        for (name, reason), count in alike.items():
            yield f"  leaves {name}{f' ({count} of them)' if count > 1 else ''}: {reason}"


@dataclass(frozen=True)
class Plan:
    """The stages of a recipe in order."""

    output_dir: str
    stages: tuple[StagePlan, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return asdict(self)

    def rich(self) -> Text:
        """Lines for the terminal."""
        lines = [line for stage in self.stages for line in stage.lines()]
        return Text("\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)]))
