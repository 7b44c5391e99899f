"""The one lookup that every table of methods uses."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

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


@dataclass(frozen=True)
class Recorded:
    """A user's function as a finished run remembers it: by its name alone."""

    name: str

    def __str__(self) -> str:
        return self.name


def own_name(value: Any) -> str:
    """What reports and errors call an entry: its name, or where a user's function comes from, ``my_module.my_function``.

    What wraps a function, as ``Loss`` and ``Criterion`` do, goes by the function's name; an object without one by that of its
    class.
    """
    if isinstance(value, str | Recorded):
        return str(value)
    inner = getattr(value, "function", None) or getattr(value, "unit", None) or value
    name = getattr(inner, "__qualname__", None) or type(inner).__qualname__
    return f"{getattr(inner, '__module__', None) or type(inner).__module__}.{name}"
