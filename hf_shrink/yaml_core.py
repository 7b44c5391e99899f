"""Scalars as the core schema of YAML 1.2.2 reads them (section 10.3.2), and writing data so that it reads back the same.

YAML 1.1, which PyYAML follows by itself, makes ``no`` a boolean, ``12:30`` and ``1_000`` numbers and ``1e-4`` text.
"""

import re
from typing import Any

import yaml

MAX_DIGITS = 400

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LINE_ENDS = re.compile("[\r\x85\u2028\u2029]")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


def resolve(text: str) -> Any:
    """The value of an unquoted scalar: null, a boolean, a number, else the text itself.

    Raises:
        ValueError: a number of more than 400 characters.
    """
    if text in _WORDS:
        return _WORDS[text]
    if not _INT.fullmatch(text) and not _FLOAT.fullmatch(text):
        return text
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} characters; at most {MAX_DIGITS} are read")
    if _INT.fullmatch(text):
        return int(text, base={"0o": 8, "0x": 16}.get(text[:2], 10))
    return float(text)


class _Writer(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(writer: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Quotes where the text would not stay itself: it looks like a number or word, or has line ends that are read as spaces."""
    looks_like_more = len(text) <= MAX_DIGITS and not isinstance(resolve(text), str)
    style = '"' if _LINE_ENDS.search(text) else "'" if looks_like_more else None
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Writer.add_representer(str, _text)


def write(data: Any) -> str:
    """YAML that reads back as ``data``, which has only lists, mappings with text keys, text, finite numbers, booleans and null.

    Text that either version of YAML would take for something else is quoted.
    """
    return yaml.dump(data, Dumper=_Writer, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120)
