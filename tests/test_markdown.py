"""Any text comes out of Markdown as the text it was."""

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hf_shrink.markdown import cell, clean, inline
from hf_shrink.measurement.numbers import quantity


def shown(markdown: str) -> str:
    """The text a reader sees of one paragraph."""
    page = MarkdownIt("commonmark").render(markdown)
    assert not re.search(r"<(?!/?(p|code)>)", page), page
    return html.unescape(re.sub(r"</?(p|code)>", "", page)).strip()


@given(st.text(max_size=60))
def test_a_reader_sees_exactly_the_cleaned_text(text):
    """Markup that slips through turns a label into a heading, a link or a script."""
    assert shown(inline(text)) == clean(text).strip()


@pytest.mark.parametrize(
    "text",
    ["# title", "- item", "1. one", "1) one", "+ plus", "=", "---", "> quote", "*bold*", "_it_", "`code`", "[a](b)", "![i](j)",
     "<script>alert(1)</script>", "<img onerror=x>", "a|b", "~~no~~", "$x$", "\\", "&amp;", "https://evil.example/a_b_c",
     "www.evil.example", "``a`b", "me@evil.example", "\u202eevil", "a\nb", "\x1b[31m", "\ud800"],
)  # fmt: skip
def test_known_tricks_show_as_text(text):
    assert shown(inline(text)) == clean(text)


@pytest.mark.parametrize("text", ["a|b", "www.x|y", "`|`", "\\|"])
def test_a_bar_never_starts_a_new_cell(text):
    """One bar more shifts every number of the row by a column."""
    page = MarkdownIt("commonmark").enable("table").render(f"| a | b |\n| --- | --- |\n| {cell(text)} | x |\n")
    cells = re.findall(r"<td>(.*?)</td>", page)
    assert len(cells) == 2 and html.unescape(re.sub("</?code>", "", cells[0])) == text


def test_clean_is_one_line_that_can_be_encoded():
    assert clean("a\r\n b\u2028c\x00\ud800") == "a b c \ufffd"


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [(22_713_216, "parameters", "22.7 M"), (90_868_376, "bytes", "90.9 MB"), (999, "bytes", "999 B"), (8.417, "ms", "8.42 ms"),
     (1733.2, "samples/s", "1733 samples/s"), (0.0, "ms", "0 ms"), (-0.84, "points", "-0.8 points"),
     (1.2, "points", "+1.2 points"), (78.25, "%", "78.2 %"), (1.5e12, "MACs", "1.5 T"),
     (0.00001, "ms", "0.000010 ms"), (3, "layers", "3 layers")],
)  # fmt: skip
def test_quantities_read_as_people_write_them(value, unit, expected):
    assert quantity(value, unit) == expected
