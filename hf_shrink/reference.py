"""The recipe reference of the README, written from the JSON Schema: one table a section."""

from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]


def markdown(schema: Schema) -> str:
    """Tables of key, type, default and meaning: the top level first, then each section where it first comes.

    Args:
        schema: a JSON Schema of an object, with its sections under ``$defs``, as pydantic writes it.
    """
    tables = [_table(schema, schema)]
    seen: list[Schema] = []
    for path, section in _sections(schema, schema, ""):
        if any(section is other for other in seen):
            continue
        seen.append(section)
        tables.append(f"### `{path}`\n\n{section['description']}\n\n{_table(section, schema)}")
    return "\n\n".join(tables) + "\n"


def _sections(section: Schema, schema: Schema, prefix: str) -> Iterator[tuple[str, Schema]]:
    for key, value in section["properties"].items():
        inner, is_list = _section_in(value, schema)
        if inner is not None:
            path = f"{prefix}{key}" + ("[]" if is_list else "")
            yield path, inner
            yield from _sections(inner, schema, f"{path}.")


def _section_in(value: Schema, schema: Schema) -> tuple[Schema | None, bool]:
    """The section that a value holds, and whether it is a list of them."""
    if "$ref" in value:
        return schema["$defs"][value["$ref"].rsplit("/", 1)[-1]], False
    if "items" in value:
        return _section_in(value["items"], schema)[0], True
    for option in value.get("anyOf") or value.get("oneOf") or ():
        if "items" not in option and (found := _section_in(option, schema))[0] is not None:
            return found
    return None, False


def _table(section: Schema, schema: Schema) -> str:
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    required = section.get("required", ())
    for key, value in section["properties"].items():
        default = "*required*" if key in required else _default(value)
        meaning = value.get("description") or (_section_in(value, schema)[0] or {}).get("description", "")
        lines.append(f"| `{key}` | {_type(value)} | {default} | {_cell(meaning)} |")
    return "\n".join(lines)


def _default(value: Schema) -> str:
    default = value.get("default")
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    return "the defaults below" if isinstance(default, dict) and default else f"`{_plain(default)}`"


def _plain(value: Any) -> str:
    return "[" + ", ".join(_plain(item) for item in value) + "]" if isinstance(value, list | tuple) else str(value)


def _type(value: Schema) -> str:
    if options := value.get("anyOf") or value.get("oneOf"):
        return " or ".join(_type(option) for option in options)
    if "$ref" in value:
        return "section"
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if "prefixItems" in value:
        return "[" + ", ".join(_type(item) for item in value["prefixItems"]) + "]"
    if value.get("type") == "array":
        return f"list of {_type(value['items'])}s"
    words = {"integer": "whole number", "string": "text", "object": "mapping", "boolean": "true or false"}
    return words.get(str(value["type"]), str(value["type"])) + _range(value)


def _range(value: Schema) -> str:
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {value[key]}" for key, sign in words.items() if key in value]
    return f", {', '.join(bounds)}" if bounds else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
