"""The card as a file: made from the report, with what somebody wrote into it kept."""

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_shrink.errors import IntegrityError, ResourceError
from hf_shrink.files import write_text
from hf_shrink.publishing.card import render
from hf_shrink.publishing.sections import HEAD, check_replaceable, parse
from hf_shrink.publishing.selection import CARD
from hf_shrink.publishing.usage import check_rehearsed, model_digest, proven
from hf_shrink.stored import REPORT, stored_file

ASIDE = "README.before.md"
"""A card of an earlier model, kept for what somebody wrote into it until there is a new one."""


@dataclass(frozen=True)
class WrittenCard:
    """A card that was written.

    Attributes:
        card: where.
        parts: those of ours, in order.
        kept: the first line of each text, and each key of the front matter, that somebody else wrote.
        changed: whether the file is another than before.
    """

    card: str
    parts: tuple[str, ...]
    kept: tuple[str, ...]
    changed: bool

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return asdict(self)

    def rich(self) -> Any:
        """Lines for the terminal."""
        from rich.text import Text

        lines = [f"kept: {line}" for line in self.kept]
        return Text("\n".join([*lines, f"{'wrote' if self.changed else 'unchanged:'} {self.card}"]))


def make_card(
    folder: str | Path,
    *,
    overwrite: bool = False,
    rehearse: Callable[[Mapping[str, Any], Path], Mapping[str, Mapping[str, str]]] | None = None,
) -> WrittenCard:
    """Write the card of a finished run again from its report, and keep what somebody wrote beside our parts.

    Args:
        folder: of a finished run, or of a published model.
        overwrite: replace our parts even where they were edited, and a card without our marks.
        rehearse: is given report and folder, where a model lies in it; what it returns takes the place of the report's
            ``usage``, which may be of another day and another machine. None lets that stand where it is about this model.

    Raises:
        RecipeError: something would be lost without ``overwrite``. MismatchError: there is no report.
        IntegrityError: report or card cannot be read, or the card's code fails. ResourceError: not a folder.
        SecurityError: the model needs code of its own.
    """
    place = Path(folder)
    if not place.is_dir():
        raise ResourceError(f"{place.name}: no such folder; name the folder of a finished run.")
    path = stored_file(place, REPORT)
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise IntegrityError(f"{place.name}/{REPORT}: not valid JSON; run the recipe again.") from None
    if not isinstance(report, dict):
        raise IntegrityError(f"{place.name}/{REPORT}: not a report of hf_shrink.")
    if rehearse is not None and (place / "config.json").is_file():
        report["usage"] = rehearse(report, place)
        check_rehearsed(report["usage"])
    return write_card(place, report, overwrite=overwrite)


def write_card(folder: Path, report: Mapping[str, Any], *, overwrite: bool = False) -> WrittenCard:
    """``make_card`` from a report in memory; a card that was set aside comes back with what somebody wrote into it."""
    before = not (folder / CARD).is_file() and (folder / ASIDE).is_file()
    old = _read(folder, ASIDE if before else CARD)
    text = render(proven(report, model_digest(folder)), old=old, overwrite=overwrite)
    if text != old or before:
        write_text(folder / CARD, text)
    if before:
        (folder / ASIDE).unlink()
    found = parse(text)
    theirs = [f"{key} ({HEAD})" for key in found.head if key not in (found.keys or ())]
    theirs += [piece.text.strip().splitlines()[0] for piece in found.pieces if not piece.name]
    return WrittenCard(str(folder / CARD), tuple(p.name for p in found.pieces if p.name), tuple(theirs), text != old)


def set_aside(folder: Path) -> None:
    """Give the card another name, under which it is not published: it is about another model than the one in ``folder``."""
    names = itertools.chain([ASIDE], (ASIDE.replace(".md", f".{i}.md") for i in itertools.count(1)))
    if (folder / CARD).is_file():
        (folder / CARD).replace(folder / next(name for name in names if not (folder / name).exists()))


def check_card(folder: Path) -> None:
    """Raises: RecipeError, IntegrityError: a card in ``folder`` could not be written again without a loss."""
    old = _read(folder)
    if (old := _read(folder, ASIDE) if old is None else old) is not None:
        check_replaceable(parse(old), overwrite=False)


def _read(folder: Path, name: str = CARD) -> str | None:
    path = folder / name
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except UnicodeDecodeError:
        raise IntegrityError(f"{folder.name}/{name}: not UTF-8 text; save it as such, or remove it.") from None
