"""Which parts of a card are ours: marked blocks, each with a digest, around which people may write."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from hf_shrink.errors import RecipeError
from hf_shrink.lines import few
from hf_shrink.publishing.checks import front_matter, metadata_of
from hf_shrink.yaml_core import write

HEAD = "front matter"
_MARK = re.compile(r"<!-- hf_shrink: (begin|end) ([a-z-]+)(?: ([0-9a-f]{12}))? -->")
_KEYS = re.compile(r"<!-- hf_shrink: front matter ([0-9a-f]{12})((?: [\w-]+)*) -->")
_SEPARATOR = "\x1e"  # a control: no text from outside keeps one


@dataclass(frozen=True)
class Piece:
    """A part of a card's page: one of ours, with its name, or what somebody wrote, without."""

    text: str
    name: str = ""
    is_intact: bool = True


@dataclass(frozen=True)
class Parsed:
    """A card read back.

    Attributes:
        head: the front matter.
        keys: those of it that are ours; None where no mark says so.
        is_head_intact: whether ours still have the values that were written.
    """

    head: dict[str, Any]
    keys: tuple[str, ...] | None
    is_head_intact: bool
    pieces: tuple[Piece, ...]

    @property
    def has_marks(self) -> bool:
        """Whether any part of it is ours."""
        return any(piece.name for piece in self.pieces)

    @property
    def edited(self) -> list[str]:
        """Names of our parts that somebody changed."""
        return [*([] if self.is_head_intact else [HEAD]), *(piece.name for piece in self.pieces if not piece.is_intact)]


def mark(name: str) -> Markup:
    """Where the template begins the part called ``name``."""
    return Markup(f"{_SEPARATOR}{name}\n")


def parts_of(filled: str) -> dict[str, str]:
    """The parts of a filled template by name; empty ones are left out."""
    pairs = (part.partition("\n") for part in filled.split(_SEPARATOR)[1:])
    return {name: text.strip() for name, _, text in pairs if text.strip()}


def assembled(head: Mapping[str, Any], parts: Mapping[str, str]) -> str:
    """A new card."""
    return _written(head, head, [Piece(text, name) for name, text in parts.items()])


def merged(old: str, head: Mapping[str, Any], parts: Mapping[str, str], *, overwrite: bool = False) -> str:
    """A card with our parts replaced, and what somebody wrote kept where it stands.

    Parts that are new come behind the one that they follow. Keys of the front matter that are not ours are kept.

    Args:
        old: the card as it is.
        head: our front matter.
        parts: our parts by name, in order.
        overwrite: replace what was edited inside our parts, and a card without marks.

    Raises:
        RecipeError: something of ours was edited, or there are no marks, without ``overwrite``; or a mark has lost its other.
        IntegrityError: the front matter is no YAML mapping.
    """
    found = parse(old)
    check_replaceable(found, overwrite=overwrite)
    if not found.has_marks:
        return assembled(head, parts)
    ours = set(head) | set(found.keys or ())
    theirs = {key: value for key, value in found.head.items() if key not in ours}
    pieces = [Piece(parts[p.name], p.name) if p.name else p for p in found.pieces if not p.name or p.name in parts]
    for i, name in enumerate(parts):
        there = [piece.name for piece in pieces]
        if name not in there:
            before = max((there.index(other) for other in list(parts)[:i] if other in there), default=-1)
            pieces.insert(before + 1, Piece(parts[name], name))
    return _written({**head, **theirs}, head, pieces)


def replaced(old: str, name: str, text: str) -> str:
    """A card with one part of ours replaced, unless somebody has edited it or there is no such part."""
    found = parse(old)
    if all(piece.name != name or not piece.is_intact for piece in found.pieces):
        return old
    lines = old.split("\n")
    marks = [_MARK.fullmatch(line.rstrip()) for line in lines]
    first, last = (i for i, found in enumerate(marks) if found is not None and found[2] == name)
    return "\n".join([*lines[:first], _block(Piece(text, name)), *lines[last + 1 :]])


def check_replaceable(card: Parsed, *, overwrite: bool) -> None:
    """Raises: RecipeError: somebody edited what is ours, or there are no marks; both would be lost without ``overwrite``."""
    if overwrite or (card.has_marks and not card.edited):
        return
    if not card.has_marks:
        raise RecipeError(
            "README.md: holds none of hf_shrink's marks, so all of it may be yours.\n"
            "Move it away, or write it anew with: hf-shrink card FOLDER --overwrite"
        )
    raise RecipeError(
        f"README.md: edited inside what hf_shrink writes: {few(card.edited)}.\n"
        "Put your words outside of its marks (<!-- hf_shrink: begin ... end -->), your keys beside its keys;\n"
        "or have those parts written anew: hf-shrink card FOLDER --overwrite"
    )


def parse(text: str) -> Parsed:
    """Read a card. Raises as ``merged``."""
    head = metadata_of(text)
    body = front_matter(text)[1]
    keys: tuple[str, ...] | None = None
    is_head_intact = not head
    pieces: list[Piece] = []
    open_name, digest, lines = "", "", list[str]()
    for line in body.split("\n"):
        if (known := _KEYS.fullmatch(line.rstrip())) and keys is None and not open_name:
            keys = tuple(known[2].split())
            is_head_intact = known[1] == _digest(_plain({key: head.get(key) for key in keys}))
            continue
        found = _MARK.fullmatch(line.rstrip())
        if found is None:
            lines.append(line)
            continue
        begins, name = found[1] == "begin", found[2]
        if begins == bool(open_name) or (not begins and name != open_name) or (begins and name in {p.name for p in pieces}):
            raise _lost(open_name or name)
        text = "\n".join(lines).strip("\n")
        if begins:
            pieces += [Piece(text)] if text.strip() else []
        else:
            pieces.append(Piece(text.strip(), name, _digest(text) == digest))
        open_name, digest, lines = (name, found[3] or "", []) if begins else ("", "", [])
    if open_name:
        raise _lost(open_name)
    rest = "\n".join(lines).strip("\n")
    return Parsed(head, keys, is_head_intact, (*pieces, *([Piece(rest)] if rest.strip() else [])))


def _lost(name: str) -> RecipeError:
    return RecipeError(
        f"README.md: a mark of part {name!r} is missing, or there twice, so it cannot be told what is yours.\n"
        f"Put back <!-- hf_shrink: begin {name} ... --> or <!-- hf_shrink: end {name} -->, or remove the file."
    )


def _written(head: Mapping[str, Any], ours: Mapping[str, Any], pieces: Sequence[Piece]) -> str:
    known = f"<!-- hf_shrink: front matter {_digest(_plain(dict(ours)))} {' '.join(ours)} -->"
    body = [_block(piece) if piece.name else piece.text for piece in pieces]
    return "\n\n".join([f"---\n{write(dict(head)).strip()}\n---", known, *body]) + "\n"


def _block(piece: Piece) -> str:
    begin = f"<!-- hf_shrink: begin {piece.name} {_digest(piece.text)} -->"
    return f"{begin}\n\n{piece.text}\n\n<!-- hf_shrink: end {piece.name} -->"


def _digest(text: str) -> str:
    """Of the words: what editors do to blanks at the ends of lines does not count."""
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def _plain(head: Mapping[str, Any]) -> str:
    return json.dumps(head, sort_keys=True, ensure_ascii=True, default=str)
