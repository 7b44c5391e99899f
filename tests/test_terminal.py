"""What comes from a model's files is shown as text; a terminal obeys nothing of it."""

import io

import pytest
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_shrink.errors import MismatchError
from hf_shrink.grids import as_rich
from hf_shrink.terminal import reported, show

TRICK = "layer\x1b]0;owned\x07\x1b[2J\x9b31m\u202e.weight"


class Shown:
    """A result of a command, as a table, a text or a plain string."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def to_json(self) -> dict[str, str]:
        return {"tensor": TRICK}

    def rich(self) -> object:
        table = Table("tensor")
        table.add_row(TRICK)
        return {"table": table, "text": Text(TRICK), "string": TRICK}[self.kind]


@pytest.mark.parametrize("kind", ["table", "text", "string"])
def test_a_name_cannot_write_to_the_terminal(kind: str, capsys: pytest.CaptureFixture[str]):
    """A tensor name from a stranger's file could clear the screen or hide what was said before."""
    show(Shown(kind), as_json=False)
    out = capsys.readouterr().out
    assert not set(out) & set("\x1b\x07\x9b\u202e") and "\\x1b[2J" in out and "layer" in out and ".weight" in out
    show(Shown(kind), as_json=True)
    assert "\x1b" not in capsys.readouterr().out


def test_an_error_cannot_either(capsys: pytest.CaptureFixture[str]):
    def fails() -> None:
        raise MismatchError(f"{TRICK}: missing.\nSecond line.")

    with pytest.raises(typer.Exit):
        reported(fails)()
    err = capsys.readouterr().err
    assert not set(err) & set("\x1b\x07\x9b\u202e") and err.count("\n") == 2 and "\\x1b[2J" in err


def test_a_narrow_terminal_wraps_names_and_cuts_none():
    """Of `bert.encoder.layer.0...` and `bert.encoder.layer.1...` nobody can tell which is which."""
    name = "bert.encoder.layer.10.attention.self:heads"
    console = Console(width=80, file=io.StringIO())
    console.print(as_rich([["mask", *["loss per fraction"] * 5], [name, *["+0.0123 (25.0 %)"] * 5]]))
    lines = console.file.getvalue().splitlines()
    assert "".join(line.split("│")[1].strip() for line in lines if "│" in line) == name
