"""Text from anywhere, made safe for one line of Markdown, a table cell or a terminal."""

import html
import re
import unicodedata

_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")
_AT_START = re.compile(r"^([-+=#]+(?=[\s=-]|$)|\d+(?=[.)](?:\s|$)))")
_LINKS = re.compile(r"://|www\.|@|mailto:", re.IGNORECASE)


def clean(text: object) -> str:
    """One line of printable text: controls, line ends, direction marks and lone surrogates become spaces or U+FFFD."""
    kept = "".join(_printable(char) for char in str(text))
    return " ".join(kept.split())


def inline(text: object) -> str:
    """``text`` as Markdown that shows exactly its characters: no markup, no HTML, no link that renderers make by themselves."""
    line = clean(text)
    if _LINKS.search(line):
        return code(line)
    escaped = html.escape(_SPECIAL.sub(r"\\\1", line), quote=False)
    return _AT_START.sub(lambda match: "".join(f"&#{ord(char)};" for char in match[0]), escaped)


def cell(text: object) -> str:
    """As ``inline``, for a table: there a bar must be escaped in code spans as well."""
    line = inline(text)
    return line.replace("|", "\\|") if line.startswith("`") else line


def code(text: object) -> str:
    """``text`` as a code span, fenced by more backticks than it holds."""
    line = clean(text)
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", line)), default=0))
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}" if line else ""


def _printable(char: str) -> str:
    kind = unicodedata.category(char)
    if kind in {"Cc", "Zl", "Zp", "Zs"}:
        return " "
    return "\ufffd" if kind in {"Cs", "Cf", "Co", "Cn"} else char
