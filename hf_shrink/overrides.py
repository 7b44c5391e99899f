"""``pruning.0.sparsity=0.3`` on the command line: one value of a recipe's plain data, set before the recipe is checked."""

import copy
from collections.abc import Sequence
from typing import Any

from hf_shrink.errors import RecipeError
from hf_shrink.explain import KeyPath, dotted, shown
from hf_shrink.yaml_source import MAX_DEPTH, Place, Source, parse


def apply(source: Source, overrides: Sequence[str]) -> Source:
    """``source`` with each ``key.path=value`` put in; sections on the way that are missing or null are made.

    A path names keys of mappings and positions in lists and can reach nothing else; whether such keys exist is the recipe's own
    check, which finds ``--set key.path=value`` as the place.

    Raises:
        RecipeError: not of that form, set twice, through a plain value, or past the end of a list.
    """
    changed = Source(copy.deepcopy(source.data), dict(source.places), list(source.problems))
    seen: set[KeyPath] = set()
    for text in overrides:
        label = f"--set {shown(text)}"
        path, value = _split(text, label)
        if path in seen:
            raise RecipeError(f"{label}: {dotted(path)!r} is set twice; give it once.")
        seen.add(path)
        _put(changed, path, value, Place(0, 0, label))
    return changed


def _split(text: str, label: str) -> tuple[KeyPath, Any]:
    keys, equals, value = text.partition("=")
    parts = keys.strip().split(".")
    if not equals or not all(parts) or len(parts) > MAX_DEPTH:
        raise RecipeError(f"{label}: expected key.path=value, such as pruning.0.sparsity=0.3.")
    if not value.strip():
        raise RecipeError(f"{label}: no value; write {keys.strip()}=null to turn it off, or =\"''\" for empty text.")
    parsed = parse(value, name=label, numbered=False)
    if parsed.problems:
        raise RecipeError(f"{label}: {parsed.problems[0][1]}")
    return tuple(int(part) if part.isdecimal() and part.isascii() and len(part) < 5 else part for part in parts), parsed.data


def _put(source: Source, path: KeyPath, value: Any, place: Place) -> None:
    here = source.data
    for n, part in enumerate(path[:-1]):
        inside = _get(here, part, path[:n], place)
        if inside is None:
            inside = [] if isinstance(path[n + 1], int) else {}
            _set(here, part, inside, path[:n], place)
            source.places[path[: n + 1]] = place
        here = inside
    _set(here, path[-1], value, path[:-1], place)
    for old in [known for known in source.places if known[: len(path)] == path]:
        del source.places[old]
    source.places[path] = place


def _get(here: Any, part: str | int, above: KeyPath, place: Place) -> Any:
    if isinstance(here, list):
        i = _index(here, part, above, place)
        return here[i] if i < len(here) else None
    return _mapping(here, above, place).get(str(part))


def _set(here: Any, part: str | int, value: Any, above: KeyPath, place: Place) -> None:
    if not isinstance(here, list):
        _mapping(here, above, place)[str(part)] = value
    elif (i := _index(here, part, above, place)) == len(here):
        here.append(value)
    else:
        here[i] = value


def _mapping(here: Any, above: KeyPath, place: Place) -> dict[str, Any]:
    if not isinstance(here, dict):
        raise RecipeError(f"{place}: {dotted(above) or 'the recipe'} is {repr(here)[:60]}, which has no keys.")
    return here


def _index(here: list[Any], part: str | int, above: KeyPath, place: Place) -> int:
    if not isinstance(part, int) or part > len(here):
        raise RecipeError(f"{place}: {dotted(above)} is a list of {len(here)}; expected a position in 0..{len(here)}.")
    return part
