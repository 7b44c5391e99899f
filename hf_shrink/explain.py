"""What pydantic found, in our words: one short line a problem, with its place and the value that came."""

from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hf_shrink.tables import nearest

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and list positions from the top down: ``("pruning", 0, "sparsity")``."""

_SHOWN = 60
_EXPLAINED = 100  # looking for the nearest name takes a millisecond, and a hostile text can have thousands of problems
_RULES = {
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
}


def dotted(path: KeyPath) -> str:
    """``pruning.0.sparsity``; a key with characters that no terminal should get is escaped."""
    return ".".join(shown(str(part)) for part in path)


def shown(text: str) -> str:
    """``text`` fit for one line of an error: as it is where it is short and printable, else escaped and cut."""
    return text if text.isprintable() and len(text) <= _SHOWN else repr(text)[:_SHOWN]


def problems(error: ValidationError, config: type[BaseModel]) -> list[tuple[KeyPath, str]]:
    """The first hundred problems, each once, as (where, what). A field of either of two types has one, not one a type."""
    found: dict[KeyPath, list[str]] = {}
    came: dict[KeyPath, str] = {}
    for details in error.errors(include_url=False)[:_EXPLAINED]:
        if details["type"] == "too_short" and details["input"]:
            continue  # pydantic also calls a list too short where it only has bad items
        path = _path(details, config)
        rule, shows_value = _rule(details, config, path)
        found.setdefault(path, []).append(rule)
        came[path] = f", got {repr(details['input'])[:_SHOWN]}" if shows_value else ""
    above = {path[:n] for path in found for n in range(len(path))}
    return [
        (path, " or ".join([rules[0], *(rule.removeprefix("must be ") for rule in rules[1:])]) + came[path])
        for path, rules in found.items()
        if path not in above
    ]


def _path(details: ErrorDetails, config: type[BaseModel]) -> KeyPath:
    """The error's location without the type names that pydantic puts in for unions."""
    path: KeyPath = ()
    for i, part in enumerate(details["loc"], start=1):
        last = i == len(details["loc"]) and details["type"] == "extra_forbidden"
        if isinstance(part, int) or last or part in _fields_at(config, path):
            path = (*path, part)
    return path


def _rule(details: ErrorDetails, config: type[BaseModel], path: KeyPath) -> tuple[str, bool]:
    """What should have come, and whether the value that came is still to be shown."""
    if details["type"] == "extra_forbidden":
        name, known = str(path[-1]), _fields_at(config, path[:-1])
        return f"unknown key {name[:_SHOWN]!r}.{nearest(name, known)} Known: {', '.join(sorted(known))}.", False
    if details["type"] == "missing":
        return "missing; it has no default.", False
    if details["type"] == "value_error":
        return details["msg"].removeprefix("Value error, ").removeprefix(f"{path[-1]}: " if path else ""), False
    if details["type"] == "literal_error":
        return f"must be {details['ctx']['expected']}", True
    return _number_rule(config, path) or _RULES.get(details["type"], details["msg"]), True


def _number_rule(config: type[BaseModel], path: KeyPath) -> str | None:
    """``must be a number in [0, 1)`` where ``path`` is a plain number field; else None."""
    owner = _config_at(config, path[:-1])
    field = owner.model_fields.get(str(path[-1])) if owner and path else None
    kinds = set(getattr(field.annotation, "__args__", (field.annotation,))) if field else set()
    if field is None or kinds - {type(None)} not in ({int}, {float}):
        return None
    noun = "a number" if float in kinds else "a whole number"
    return f"must be {noun}{_range(field.metadata)}" + (" or null" if type(None) in kinds else "")


def _range(metadata: list[Any]) -> str:
    """`` in [0, 1)`` or `` above 0``, from the bounds that pydantic keeps; nothing where there are none."""
    ends = {name: getattr(bound, name) for bound in metadata for name in ("ge", "gt", "le", "lt") if hasattr(bound, name)}
    low = next((f"{bracket}{ends[name]}" for name, bracket in (("ge", "["), ("gt", "(")) if name in ends), None)
    high = next((f"{ends[name]}{bracket}" for name, bracket in (("le", "]"), ("lt", ")")) if name in ends), None)
    if low and high:
        return f" in {low}, {high}"
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    return "".join(f" {words[name]} {bound}" for name, bound in ends.items())


def _fields_at(config: type[BaseModel], path: KeyPath) -> list[str]:
    found = _config_at(config, path)
    return list(found.model_fields) if found else []


def _config_at(config: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The config that ``path`` leads to, looking through optionals and lists; None where it leads to a plain value."""
    here: Any = config
    for part in path:
        if isinstance(part, int):
            continue
        fields = here.model_fields if here is not None else {}
        here = _config_in(fields[part].annotation) if part in fields else None
    found: type[BaseModel] | None = here
    return found


def _config_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _config_in(argument)) is not None:
            return found
    return None
