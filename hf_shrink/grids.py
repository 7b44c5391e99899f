"""A table of texts, header first, with a few lines below it: as Markdown and for the terminal."""

from collections.abc import Sequence
from typing import Any

from hf_shrink.markdown import cell, clean, inline

Grid = Sequence[Sequence[str]]


def as_markdown(grid: Grid, captions: Sequence[str] = ()) -> str:
    """A pipe table, every cell escaped, and ``captions`` as a list below it."""
    header, *body = [[cell(text) for text in line] for line in grid]
    ruler = ["---", *["---:"] * (len(header) - 1)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in [header, ruler, *body])
    return "\n\n".join([table, *(["\n".join(f"- {inline(line)}" for line in captions)] if captions else [])])


def as_rich(grid: Grid, captions: Sequence[str] = ()) -> Any:
    """A ``rich.table.Table`` with ``captions`` below it."""
    from rich.table import Table
    from rich.text import Text

    header, *body = grid
    below = Text("\n".join(clean(line) for line in captions)) if captions else None
    table = Table(caption=below, caption_justify="left")
    for i, title in enumerate(header):
        table.add_column(Text(clean(title)), justify="right" if i else "left", overflow="fold")
    for line in body:
        table.add_row(*(Text(clean(text)) for text in line))
    return table
