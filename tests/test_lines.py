"""Pieces of error messages. What these prevent: an error about an error, and a user's name in a public log."""

import pytest

from hf_shrink.lines import few, first_line, without_home


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n first \nsecond"), "first"),
        (ValueError("x" * 400), "x" * 300),
        (RuntimeError(), "RuntimeError"),
        (RuntimeError(" \n"), "RuntimeError"),
    ],
)
def test_any_error_gives_one_short_line(error: BaseException, line: str):
    """``splitlines()[0]`` of an empty message raises where an explanation was due."""
    assert first_line(error) == line


@pytest.mark.parametrize(("home", "shown"), [("/home/somebody", "~/a/b"), ("/", "/home/somebody/a/b")])
def test_the_home_folder_is_not_told(monkeypatch: pytest.MonkeyPatch, home: str, shown: str):
    """With ``HOME=/``, as in many containers, every slash would become a tilde."""
    monkeypatch.setenv("HOME", home)
    assert without_home("/home/somebody/a/b") == shown


def test_a_user_without_a_home_still_gets_the_message(monkeypatch: pytest.MonkeyPatch):
    def nowhere() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", nowhere)
    assert first_line(ValueError("/a/b is broken")) == "/a/b is broken"


def test_a_long_list_is_cut_and_says_so():
    assert few([1, 2, 3], 3) == "1, 2, 3"
    assert few("abcde", 3) == "a, b, c, ... (2 more)"
    assert few([]) == "none"


def test_what_a_terminal_obeys_is_written_out():
    """A label may move the cursor, set the title or hide the line before it."""
    from hf_shrink.lines import visible

    assert visible("a\x1b[31mb\x9b\u202e\x07c\r\n\td é 文") == "a\\x1b[31mb\\x9b\\u202e\\x07c\\r\n\td é 文"
