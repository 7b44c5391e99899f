"""Pieces of an error message: other people's words as one short line, a long list cut, nothing that names the user."""

import re
from collections.abc import Iterable
from pathlib import Path

_LENGTH = 300
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def first_line(error: BaseException) -> str:
    """What a library said: its first line, at most 300 characters; the kind of error where it said nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return without_home(lines[0].rstrip())[:_LENGTH]


def without_home(text: str) -> str:
    """``text`` with the home folder written as ``~``: errors end up in public logs."""
    try:
        home = str(Path.home())
    except RuntimeError:  # a user without an entry in the system's list, as in some containers
        return text
    return text.replace(home, "~") if len(home) > 1 else text


def visible(text: str) -> str:
    """``text`` with what a terminal obeys written out: controls other than line ends and tabs, and marks of direction."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def few(items: Iterable[object], most: int = 5) -> str:
    """The first of ``items`` in one line, ``a, b, ... (3 more)``; ``none`` where there are none."""
    names = [str(item) for item in items]
    more = [f"... ({len(names) - most} more)"] if len(names) > most else []
    return ", ".join(names[:most] + more) or "none"
