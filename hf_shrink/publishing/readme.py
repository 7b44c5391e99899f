"""The card as a file: made from the report, with what somebody wrote into it kept."""

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
from hf_shrink.stored import REPORT, stored_file


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
    rehearse: Callable[[Mapping[str, Any], Path], object] | None = None,
) -> WrittenCard:
    """Write the card of a finished run again from its report, and keep what somebody wrote beside our parts.

    Args:
        folder: of a finished run, or of a published model.
        overwrite: replace our parts even where they were edited, and a card without our marks.
        rehearse: is given report and folder, where a model lies in it, and raises if the card's code does not run there.

    Raises:
        RecipeError: something would be lost without ``overwrite``. MismatchError: there is no report.
        IntegrityError: report or card cannot be read. ResourceError: not a folder.
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
        rehearse(report, place)
    return write_card(place, report, overwrite=overwrite)


def write_card(folder: Path, report: Mapping[str, Any], *, overwrite: bool = False) -> WrittenCard:
    """``make_card`` from a report in memory."""
    old = _read(folder)
    text = render(report, old=old, overwrite=overwrite)
    if text != old:
        write_text(folder / CARD, text)
    found = parse(text)
    theirs = [f"{key} ({HEAD})" for key in found.head if key not in (found.keys or ())]
    theirs += [piece.text.strip().splitlines()[0] for piece in found.pieces if not piece.name]
    return WrittenCard(str(folder / CARD), tuple(p.name for p in found.pieces if p.name), tuple(theirs), text != old)


def check_card(folder: Path) -> None:
    """Raises: RecipeError, IntegrityError: a card in ``folder`` could not be written again without a loss."""
    if (old := _read(folder)) is not None:
        check_replaceable(parse(old), overwrite=False)


def _read(folder: Path) -> str | None:
    path = folder / CARD
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except UnicodeDecodeError:
        raise IntegrityError(f"{folder.name}/{CARD}: not UTF-8 text; save it as such, or remove it.") from None
