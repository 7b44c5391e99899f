"""Strings that want to be something else, in every field of a card that comes from outside.

A report has no author: whoever publishes is the owner of the repository. ``tags`` stands in its place.
"""

import copy
import functools
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hf_shrink.errors import RecipeError
from hf_shrink.markdown import clean
from hf_shrink.measurement.values import Report
from hf_shrink.publishing.card import render
from hf_shrink.publishing.checks import front_matter
from hf_shrink.publishing.metadata import metadata
from hf_shrink.publishing.private import published
from hf_shrink.publishing.sections import parse
from hf_shrink.yaml_core import write
from tests.publishing.report import report

STRINGS = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg/onload=alert(1)>", "<a href='//evil.example'>x</a>",
    "<iframe src=javascript:alert(1)>", "</details><h1>x", "</code></pre><script>x</script>", "<!-- x", "--> <b>x</b>",
    "<!-- hf_shrink: end summary -->", "&lt;script&gt;", "<style>*{display:none}</style>", "<b onclick=x>y</b>",
    "[x](https://evil.example)", "[x](javascript:alert(1))", "![i](https://evil.example/i.png)", "<https://evil.example>",
    "https://evil.example", "www.evil.example", "me@evil.example", "[x]: https://evil.example",
    "[limits](#limits)", "[x][y]\n\n[y]: //evil.example", "# heading", "a\n# heading", "a\n===", "a\n---\nlicense: mit\n---",
    "---", "...", "***", "- item", "1. item", "> quote", "| a | b |", "a\n\n    code", "`", "~~~\nx", "``` \n# out",
    "_x_ **y**", "\\\n# x", "!!python/object/apply:os.system [id]", "&a *a", "{a: b}", "a: b", "'", '"', "no",
    "1e-4", "12:30", "2026-01-01", "~", "%x", "{{ 7*7 }}", "\x00\x1b[31mred\x1b[0m", "\x1b]8;;https://evil.example\x07x",
    "\u202egnp.exe", "\ud800", "\r\n\r\n## x", "\u2028## x", "\x1esummary\n# x",
]  # fmt: skip


def put(field: str, text: str, into: dict[str, Any] | None = None) -> dict[str, Any]:
    """A report with ``text`` in one field."""
    data = copy.deepcopy(into or report())
    recipe, last = data["recipe"], data["stages"][-1]
    if field == "labels":
        data["label_names"] = [text, "positive"]
    elif field == "dataset":
        recipe["data"]["dataset"] = text
    elif field == "metric":
        last["measurements"].append({"name": text or "x", "value": 1.0, "unit": text, "setting": text})
    elif field == "hyperparameter":
        recipe["training"] = {text: text, "run_name": text}
    elif field == "notes":
        last["notes"], last["did"], data["remarks"] = [text], [text], [text]
        data["gate"] = {
            "rule": text,
            "held": False,
            "stages": [{"title": text, "held": False, "why": text}],
            "dropped": {text: text},
        }
    else:
        recipe["publishing"][field] = [text] if field == "tags" else text
    return data


FIELDS = ["labels", "dataset", "model_name", "metric", "hyperparameter", "tags", "license", "notes"]
NAMED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "model_name": lambda head: head["model-index"][0]["name"],
    "license": lambda head: head["license"],
    "tags": lambda head: head["tags"][-1],
}
"""Where the front matter says the field's text."""

TAGS = {"h1", "h2", "p", "strong", "a", "ul", "li", "code", "pre", "details", "summary", "hr"} | {
    "table", "thead", "tbody", "tr", "th", "td"
}  # fmt: skip


class Page(HTMLParser):
    """What a browser sees: tags with attributes, headings, and the words outside of code."""

    def __init__(self, card: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words, self.code = "", 0
        self.feed(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(front_matter(card)[1]))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.code += tag in ("code", "pre")

    def handle_endtag(self, tag):
        self.code -= tag in ("code", "pre")

    def handle_data(self, data):
        self.words += "" if self.code else data

    @property
    def headings(self) -> list[str]:
        return [tag for tag, _ in self.tags if re.fullmatch(r"h\d", tag)]


@functools.cache
def usual(field: str) -> tuple[set[str], list[str]]:
    """Keys of the front matter, and the headings, where the field holds a plain word."""
    card = render(put(field, "plain"))
    return set(yaml.safe_load(front_matter(card)[0])), Page(card).headings


ALWAYS = ("labels", "hyperparameter")


@pytest.mark.parametrize("field", [pytest.param(f, marks=() if f in ALWAYS else pytest.mark.slow) for f in FIELDS])
def test_60_hostile_strings_stay_text(field: str):
    """A label of a public data set is somebody else's text on your page."""
    assert len(set(STRINGS)) == 60 and len(FIELDS) == 8
    for text in STRINGS:
        if field == "metric" and text == "\ud800":  # no name of a measurement: refused where the report is read
            with pytest.raises(RecipeError, match="unicode"):
                render(put(field, text))
            continue
        card = render(put(field, text))
        keys, headings = usual(field)
        head = yaml.safe_load(front_matter(card)[0])
        line = clean(published(text))  # what looks like a path is cut to its last name
        assert set(head) - {"datasets"} == keys - {"datasets"}, text
        if line and field in NAMED:
            assert NAMED[field](head) == line, text
        seen = Page(card)
        assert {tag for tag, _ in seen.tags} <= TAGS - {"hr"}, text
        for _, attributes in seen.tags:
            assert set(attributes) <= {"class", "style", "href"}, text
            assert attributes.get("href", "#") in {"#", "#limits", "#quality-gate"}, text
            assert re.fullmatch(r"text-align:right|", attributes.get("style") or ""), text
        assert seen.headings == headings, text
        assert not re.search(r"://|www\.|\w@\w", seen.words), f"{text}: renderers make links of such words"
        assert "\x1b" not in card and [p.name for p in parse(card).pieces if not p.name] == [], text
        if field == "hyperparameter":
            fenced = re.search(r"^(`{3,})yaml\n(.*?)\n\1$", card, re.S | re.M)
            assert fenced and "run_name" in yaml.safe_load(fenced[2])["training"], text


def reads_back_equal(text: str) -> None:
    """The front matter with ``text`` in every field of it, and its words where they belong."""
    data = published(functools.reduce(lambda found, field: put(field, text, found), FIELDS, report()))
    head = metadata(data, Report.from_stage(data["stages"][-1]))
    assert yaml.safe_load(write(head)) == head
    if line := clean(published(text)):
        assert all(words(head) == line for name, words in NAMED.items() if name != "tags" or line not in head["tags"][:-1])


FREE = st.text(max_size=30)
"""Any characters: lone surrogates, marks of direction, controls."""


@given(FREE)
@settings(max_examples=200)
def test_any_text_in_every_field_reads_back_equal(text: str):
    """Metadata that cannot be parsed makes the Hub show a bare page."""
    reads_back_equal(text)


@pytest.mark.slow
@given(FREE)
@settings(max_examples=2000)
def test_any_text_in_every_field_reads_back_equal_2000_times(text: str):
    reads_back_equal(text)


@given(FREE, st.sampled_from(FIELDS))
@settings(max_examples=50)
def test_any_text_in_any_field_gives_a_card_that_is_written_again_the_same(text: str, field: str):
    if field == "metric":
        text = clean(text)
    card = render(put(field, text))
    assert card.encode("utf-8") and render(put(field, text), old=card) == card


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_metric_that_is_no_number_is_published(value: float):
    """JSON reads NaN back without a word; a leaderboard sorts it to the top."""
    data = json.loads(json.dumps(report()))
    data["stages"][-1]["measurements"][0]["value"] = value
    with pytest.raises(RecipeError, match="finite"):
        render(data)
