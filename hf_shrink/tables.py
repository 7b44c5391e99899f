"""The one lookup that every table of methods uses."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from hf_shrink.errors import RecipeError

T = TypeVar("T")


def pick(table: Mapping[str, T], name: str, where: str) -> T:
    """``table[name]``, or an error that names the place, the nearest entry and every entry."""
    if name in table:
        return table[name]
    raise RecipeError(f"{where}: unknown name {name!r}.{nearest(name, table)} Known: {', '.join(sorted(table))}.")


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'sparsity'?``, or nothing where no known name is close."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
