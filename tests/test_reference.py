"""The generated reference. What these prevent: a README that lacks a key, or has another default."""

from hf_shrink.recipe import Recipe
from hf_shrink.reference import markdown

SCHEMA = {
    "properties": {
        "name": {"type": "string", "description": "A | b."},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/Part"}, "default": []},
        "kind": {"enum": ["a", "b"], "default": "a", "description": "Kind."},
    },
    "required": ["name"],
    "$defs": {
        "Part": {
            "description": "One part.",
            "properties": {
                "size": {
                    "anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}],
                    "default": None,
                    "description": "In mm.",
                }
            },
        }
    },
}


def test_tables_say_key_type_default_and_meaning():
    assert markdown(SCHEMA) == (
        "| key | type | default | meaning |\n"
        "| --- | --- | --- | --- |\n"
        "| `name` | text | *required* | A \\| b. |\n"
        "| `parts` | list of sections | `[]` | One part. |\n"
        "| `kind` | `a`, `b` | `a` | Kind. |\n"
        "\n### `parts[]`\n\nOne part.\n\n"
        "| key | type | default | meaning |\n"
        "| --- | --- | --- | --- |\n"
        "| `size` | whole number, ≥ 1 or null | null | In mm. |\n"
    )


def test_every_key_of_every_section_is_in_it():
    text, schema = Recipe.reference_markdown(), Recipe.json_schema()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    sections = [schema, *schema["$defs"].values()]
    assert len(rows) == sum(len(section["properties"]) for section in sections)
    assert all(line.count(" | ") == 3 and not line.endswith("|  |") for line in rows), "a cell is empty or split"
    assert "### `distillation.losses[]`" in text
