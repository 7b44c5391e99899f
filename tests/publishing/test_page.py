"""The page: what the table says, nothing from outside that runs or is fetched, and nothing that says whose machine it was."""

import itertools
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_shrink.measurement.compare import compare
from hf_shrink.measurement.tradeoffs import Point, Tradeoff
from hf_shrink.measurement.values import ReliabilityBin, Report
from hf_shrink.publishing.page import Structure, page
from hf_shrink.publishing.svg import _ticks, reliability, scatter
from tests.publishing.report import report
from tests.publishing.test_plots import contrast

HOSTILE = (
    "<script>alert(1)</script>",
    "</pre></details><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "{{ 7 * 7 }}{% for x in y %}",
    "\x1b[31m\u202e &lt;b&gt;",
    "/home/somebody/secret/model",
)


def stages(title: str = "8 bits") -> list[Report]:
    found = [Report.from_stage(stage) for stage in report()["stages"]]
    bins = (ReliabilityBin(low=0.8, high=0.9, count=3, confidence=0.85, accuracy=0.5),)
    return [*found[:3], found[3].model_copy(update={"title": title, "did": (title,), "reliability": bins})]


def rendered(text: str = "8 bits") -> str:
    structure = Structure(text, text, [["part", "bytes"], [text, "1,234"]])
    table = compare(stages(text), baseline="teacher")
    recipes = {text: {"task": text, "data": {"dataset": "/home/somebody/data.csv"}}}
    return page(text, table, columns=[3], remarks=[text], structures=[structure], recipes=recipes, version="0.1.0")


class _Tags(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_every_cell_of_the_table_and_the_verdict_are_there():
    """90 MB to 45 MB is 2.0x; 14 ms to 21 ms is 1.5x slower; 78 of 80 is 97.5 %."""
    found = _Tags(rendered())
    text = " ".join(" ".join(found.text).split())
    assert "2.0x smaller on disk, 1.5x slower at batch 1, 2.0x faster at batch 32, 97.5 % of the accuracy of MiniLM-L6." in text
    for line in compare(stages(), baseline="teacher").grid():
        assert all(cell in found.text for cell in line if cell), line
    assert "1,234" in text and sum(tag == "svg" for tag, _ in found.tags) == 4


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_outside_is_text(text: str):
    """A model's title could otherwise run a script in the reader's browser."""
    plain, found = _Tags(rendered()), _Tags(rendered(text))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in plain.tags]
    for tag, attributes in found.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert tag not in {"script", "iframe", "object", "embed", "form", "base"}
    assert "/home" not in rendered(text) and "49" not in re.findall(r"<h1>(.*?)</h1>", rendered(text))[0]
    assert "\x1b" not in rendered(text) and "\u202e" not in rendered(text)


def test_nothing_is_fetched():
    """A font or a script from elsewhere tells a stranger who reads the page, and is missing without a network."""
    text = rendered()
    for tag, attributes in _Tags(text).tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), (tag, attributes)
    assert "://" not in text and "@import" not in text and "url(" not in text
    assert "default-src 'none'" in text, "and where it were asked for, the browser refuses"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_colours_can_be_read_in_light_and_in_dark(scheme: str):
    """WCAG asks 4.5 to 1 of text; the colours of the charts are letters, too."""
    light, dark = re.findall(r":root \{(.*?)\}", rendered(), flags=re.S)
    colours = dict(re.findall(r"--(\w+): #(\w{6})", light if scheme == "light" else dark))
    rgb = {name: tuple(int(value[i : i + 2], 16) / 255 for i in (0, 2, 4)) for name, value in colours.items()}
    for name in ("ink", "faint", "c0", "c1", "c2", "c3"):
        assert contrast(rgb[name], rgb["page"]) >= 4.5, (name, colours[name])


@given(st.lists(st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-4), min_size=1, max_size=5))
@settings(max_examples=100)
def test_ticks_hold_every_value_and_are_few(values: list[float]):
    """A value outside of the axes would be drawn outside of the picture."""
    ticks = _ticks(values)
    room = 1e-6 * max(1.0, *map(abs, values))
    assert ticks[0] <= min(values) + room and ticks[-1] >= max(values) - room
    assert 2 <= len(ticks) <= 8 and ticks == sorted(set(ticks))


def test_points_lie_where_their_values_are_and_labels_do_not_cover_each_other():
    """Twice the bytes is twice as far from zero; two models of one quality keep two names."""
    points = tuple(Point(f"model {i}", 10.0 * (i + 1), 80.0, (79.0, 81.0), i) for i in range(2))
    root = ET.fromstring(scatter(Tradeoff("size (MB)", "accuracy (%)", points)))
    first, second = (float(c.get("cx")) for c in root.iter("circle"))
    assert second - 52 == pytest.approx(2 * (first - 52), abs=0.2), "the axis of costs starts at zero, 52 from the left"
    crowd = tuple(Point(f"model {i}", 50.0, 80.0, None, i) for i in range(4))
    root = ET.fromstring(scatter(Tradeoff("size (MB)", "accuracy (%)", crowd)))
    heights = sorted(float(t.get("y")) for t in root.iter("text") if t.get("class", "").startswith("c"))
    assert len(heights) == 4 and min(b - a for a, b in itertools.pairwise(heights)) >= 12
    bars = ET.fromstring(reliability(stages()[3].reliability, "x & y"))
    (bar,) = bars.iter("rect")
    assert float(bar.get("height")) == pytest.approx(0.5 * (250 - 14 - 44)) and bars.get("aria-label") == "reliability of x & y"
