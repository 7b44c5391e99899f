"""YAML text to plain data, with the place of every key.

Only null, booleans, numbers, text, lists and mappings can come out. PyYAML's parser delivers events; no Python object is ever
constructed, and the limits are checked while the events arrive, before anything is expanded.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import yaml
from yaml import events as ev

from hf_shrink.errors import RecipeError, SecurityError
from hf_shrink.explain import KeyPath, dotted
from hf_shrink.yaml_core import resolve

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_NODES = 10_000

_YAML = "tag:yaml.org,2002:"
_CORE_TAGS = {f"!!{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map")}


class _Mark(Protocol):
    """PyYAML's own mark; line and column count from 0."""

    line: int
    column: int


@dataclass(frozen=True, order=True)
class Place:
    """Where something was written; line and column count from 1, and 0 stands for "no line" (an option's value)."""

    line: int
    column: int
    name: str

    def __str__(self) -> str:
        return f"{self.name}:{self.line}:{self.column}" if self.line else self.name


@dataclass(frozen=True)
class Source:
    """What a text holds.

    Attributes:
        data: plain data.
        places: the place of every key and list item by its path; ``()`` is the whole text.
        problems: what is wrong but did not stop the reading, such as a key that is set twice.
    """

    data: Any
    places: dict[KeyPath, Place]
    problems: list[tuple[Place, str]]


def parse(text: str, *, name: str, numbered: bool = True) -> Source:
    """Read one YAML document.

    Args:
        text: at most 256 KiB as UTF-8, nested at most 32 deep, at most 10 000 nodes once aliases are expanded.
        name: what errors call the text, as in ``recipe.yaml:7:3: ...``.
        numbered: False leaves line and column out of errors and places.

    Raises:
        RecipeError: not YAML, or above a limit.
        SecurityError: a tag that asks for anything but plain data.
    """
    return _Reader(name, numbered).read(text)


def decode(raw: bytes, *, name: str) -> str:
    """UTF-8 text of ``raw``, or a RecipeError that names the line of the first bad byte."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        bad = raw[error.start]
        raise RecipeError(f"{name}:{line}:{column}: not valid YAML: byte 0x{bad:02x}; save the file as UTF-8.") from None


@dataclass
class _Anchor:
    data: Any
    nodes: int
    height: int


@dataclass
class _Reader:
    name: str
    numbered: bool
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[tuple[Place, str]] = field(default_factory=list)
    anchors: dict[str, _Anchor] = field(default_factory=dict)
    nodes: int = 0

    def read(self, text: str) -> Source:
        self._check_text(text)
        events = self._events(text)
        assert isinstance(next(events), ev.StreamStartEvent)
        start = next(events)
        if isinstance(start, ev.StreamEndEvent):
            self._refuse(None, "not valid YAML: the text is empty.")
        assert isinstance(start, ev.DocumentStartEvent)
        if start.version or start.tags:
            self._refuse(start, "directives (%YAML, %TAG) are not read; remove the line.")
        self.places[()] = self._place(None)
        data, _ = self._node(next(events), events, ())
        assert isinstance(next(events), ev.DocumentEndEvent)
        if not isinstance(more := next(events), ev.StreamEndEvent):
            self._refuse(more, "not valid YAML: a second document starts here; a recipe is one document.")
        return Source(data, self.places, self.problems)

    def _check_text(self, text: str) -> None:
        size = len(text.encode("utf-8", errors="surrogatepass"))
        if size > MAX_BYTES:
            self._refuse(None, f"{size} bytes; at most {MAX_BYTES} (256 KiB) are read.")
        if text.startswith("\ufeff"):
            self._refuse(None, "not valid YAML: starts with a byte order mark; save the file as UTF-8 without BOM.")

    def _events(self, text: str) -> Iterator[ev.Event]:
        try:
            yield from yaml.parse(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._refuse(mark, f"not valid YAML: {error.problem or error.context}.")
        except yaml.reader.ReaderError as error:
            before = text[: error.position]
            place = Place(before.count("\n") + 1, error.position - before.rfind("\n"), self.name)
            self._refuse(place, f"not valid YAML: character U+{ord(text[error.position]):04X} is not allowed.")
        except (ValueError, OverflowError):  # an escape or a version number that PyYAML converts without a check
            self._refuse(None, "not valid YAML: a number in an escape or a directive is out of range.")

    def _node(self, event: ev.Event, events: Iterator[ev.Event], path: KeyPath) -> tuple[Any, int]:
        """The value that starts with ``event``, and how many levels of lists and mappings it has."""
        if isinstance(event, ev.AliasEvent):
            return self._alias(event, path)
        self._count(event, 1)
        self._check_tag(event)
        before = self.nodes
        if isinstance(event, ev.ScalarEvent):
            data, height = self._scalar(event), 0
        elif len(path) >= MAX_DEPTH:
            self._refuse(event, f"nested deeper than {MAX_DEPTH} levels.")
        elif isinstance(event, ev.SequenceStartEvent):
            data, height = self._sequence(events, path)
        else:
            data, height = self._mapping(events, path)
        if anchor := getattr(event, "anchor", None):
            self.anchors[anchor] = _Anchor(data, self.nodes - before + 1, height)
        return data, height

    def _scalar(self, event: ev.ScalarEvent) -> Any:
        if not event.implicit[0]:  # quoted, or a block of text
            return event.value
        try:
            return resolve(event.value)
        except ValueError as error:
            self._refuse(event, f"{error}.")

    def _alias(self, event: ev.AliasEvent, path: KeyPath) -> tuple[Any, int]:
        anchor = self.anchors.get(event.anchor or "")
        if anchor is None:
            self._refuse(event, f"not valid YAML: alias {str(event.anchor)[:60]!r} has no complete anchor before it.")
        self._count(event, anchor.nodes)
        if len(path) + anchor.height > MAX_DEPTH:
            self._refuse(event, f"nested deeper than {MAX_DEPTH} levels.")
        return copy.deepcopy(anchor.data), anchor.height

    def _sequence(self, events: Iterator[ev.Event], path: KeyPath) -> tuple[list[Any], int]:
        items: list[Any] = []
        height = 0
        while not isinstance(event := next(events), ev.SequenceEndEvent):
            here = (*path, len(items))
            self.places[here] = self._place(event)
            item, below = self._node(event, events, here)
            items.append(item)
            height = max(height, below)
        return items, height + 1

    def _mapping(self, events: Iterator[ev.Event], path: KeyPath) -> tuple[dict[str, Any], int]:
        entries: dict[str, Any] = {}
        lines: dict[str, int] = {}
        height = 0
        while not isinstance(event := next(events), ev.MappingEndEvent):
            key = self._key(event)
            place = self._place(event)
            line = _mark(event).line + 1
            if key in lines:
                told = f" (lines {lines[key]} and {line})" if self.numbered else ""
                self.problems.append((place, f"{dotted((*path, key))}: {key[:60]!r} set twice{told}; remove one."))
            lines.setdefault(key, line)
            self.places[(*path, key)] = place
            entries[key], below = self._node(next(events), events, (*path, key))
            height = max(height, below)
        return entries, height + 1

    def _key(self, event: ev.Event) -> str:
        self._count(event, 1)
        self._check_tag(event)
        if not isinstance(event, ev.ScalarEvent):
            self._refuse(event, "a key must be plain text, not an alias, a list or a mapping.")
        key: str = event.value
        if event.implicit[0]:
            if key == "<<":
                self._refuse(event, "merge keys (<<) are not part of YAML 1.2; write the keys out.")
            if not isinstance(self._scalar(event), str):
                self.problems.append((self._place(event), f"key {key[:60]!r} is not text; quote it or rename it."))
        return key

    def _check_tag(self, event: ev.Event) -> None:
        tag: str | None = getattr(event, "tag", None)
        if tag is None:
            return
        tag = f"!!{tag.removeprefix(_YAML)}" if tag.startswith(_YAML) else tag
        if tag in _CORE_TAGS:
            self._refuse(event, f"tag {tag!r} is not read; write the plain value, quoted where it is text.")
        place = self._place(event)
        raise SecurityError(f"{place}: tag {tag[:80]!r} refused: a recipe holds plain data and runs nothing. Remove the tag.")

    def _count(self, event: ev.Event, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            self._refuse(event, f"more than {MAX_NODES} nodes after aliases are expanded; a recipe has a few hundred at most.")

    def _place(self, at: ev.Event | _Mark | None) -> Place:
        if not self.numbered:
            return Place(0, 0, self.name)
        mark = _mark(at) if isinstance(at, ev.Event) else at
        return Place(mark.line + 1, mark.column + 1, self.name) if mark else Place(1, 1, self.name)

    def _refuse(self, at: ev.Event | _Mark | Place | None, message: str) -> NoReturn:
        place = at if isinstance(at, Place) and self.numbered else self._place(None if isinstance(at, Place) else at)
        raise RecipeError(f"{place}: {message}")


def _mark(event: ev.Event) -> _Mark:
    mark = event.start_mark
    assert mark is not None, "PyYAML's parser marks every event"
    return mark
