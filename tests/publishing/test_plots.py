"""Pictures that anyone can read, on any page, and that are the same twice."""

import builtins
import dataclasses
import xml.etree.ElementTree as ET

import pytest

from hf_shrink.errors import RecipeError, ResourceError
from hf_shrink.pruning.sensitivity_table import Point, Sensitivity, Words
from hf_shrink.publishing.plots import COLOURS, INK, plot_sensitivity, style

matplotlib = pytest.importorskip("matplotlib")
WHITE, DARK = (1.0, 1.0, 1.0), (0x0D / 255, 0x11 / 255, 0x17 / 255)


def result(layers=2):
    points = [
        Point(f"l.{i}:{kind}", kind, f"l.*:{kind}", i, f, int(8 * f), 8, -f * (i + 1), f * (i + 1), 10, 9)
        for kind in ("ffn", "heads")
        for i in range(layers)
        for f in (0.25, 0.5)
    ]
    shared = Point("l.*.x:heads", "heads", "l.*.x:heads", None, 0.5, 2, 4, -1.0, 1.0, 10, 9)
    return Sensitivity((*points, shared), 0.0, Words("log-likelihood", "nats"))


def contrast(one, other):
    """As WCAG 2.2 defines it, from sRGB."""

    def luminance(rgb):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_both_files_are_the_same_twice_whatever_the_user_has_set(tmp_path):
    """A picture with a date or a random id in it changes a repository with every run."""
    first = [path.read_bytes() for path in plot_sensitivity(result(), tmp_path / "a")]
    with matplotlib.rc_context({"lines.linewidth": 9, "svg.fonttype": "none", "figure.dpi": 30, "axes.grid": True}):
        second = [path.read_bytes() for path in plot_sensitivity(result(), tmp_path / "b")]
        assert matplotlib.rcParams["lines.linewidth"] == 9, "the user's settings are the user's"
    assert first == second and all(map(len, first))
    other = Sensitivity(result().points[:-1], 0.0, Words("log-likelihood", "nats"))
    assert [path.read_bytes() for path in plot_sensitivity(other, tmp_path / "c")] != first


def test_files_are_what_they_are_called_and_the_page_shows_through(tmp_path):
    """A white box in a dark page is the commonest fault of a chart in a README."""
    from PIL import Image

    png, svg = plot_sensitivity(result(), tmp_path, name="mine")
    assert (png.name, svg.name) == ("mine.png", "mine.svg")
    picture = Image.open(png)
    assert picture.format == "PNG" and picture.mode == "RGBA" and picture.getpixel((0, 0))[3] == 0
    seen = {pixel[:3] for _, pixel in picture.getcolors(1 << 20) if pixel[3] == 255}
    assert tuple(int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)) in seen
    root = ET.fromstring(svg.read_text(encoding="utf-8"))
    assert root.tag.endswith("svg")
    text = svg.read_text(encoding="utf-8").lower()
    assert "#ffffff" not in text and "#000000" not in text and INK in text


def test_each_part_has_a_panel_and_each_layer_a_line(tmp_path, monkeypatch):
    """A layer that is not drawn looks like one that costs nothing."""
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: drawn.append(self))
    plot_sensitivity(result(layers=3), tmp_path)
    panels = [axes for axes in drawn[0].axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["ffn\nl.*", "heads\nl.*", "heads\nl.*.x"]
    for axes, noun in zip(panels, ("neurons", "heads", "heads"), strict=True):
        assert axes.get_xlabel() == f"{noun} removed (%)" and axes.get_ylabel() == "log-likelihood lost (nats)"
    lines = {line.get_label(): line for line in panels[0].get_lines()}
    assert {"layer 0", "layer 1", "layer 2"} <= lines.keys()
    assert list(lines["layer 2"].get_xdata()) == [0, 25, 50] and list(lines["layer 2"].get_ydata()) == [0, 0.75, 1.5]
    assert [text.get_text() for text in panels[2].get_legend().get_texts()] == ["all layers"]


def test_letters_and_lines_stand_out_on_white_and_on_dark():
    """WCAG asks 3 to 1 of what a picture must show; black letters have 1.1 on the Hub's dark page."""
    for colour in (INK, *COLOURS):
        rgb = tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        assert contrast(rgb, WHITE) >= 2.9 and contrast(rgb, DARK) >= 2.9, colour
    assert contrast(WHITE, (0, 0, 0)) == pytest.approx(21), "this test's own formula"


def test_no_two_layers_of_a_deep_model_look_alike():
    """Large models have 80 layers; more than the colours there are."""
    assert len({tuple(style(i).values()) for i in range(112)}) == 112
    assert len({(style(i)["color"], style(i)["linestyle"]) for i in range(16)}) == 16
    assert len({style(i)["marker"] for i in range(4)}) == 4, "colour is never the only difference"


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **options):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ResourceError, match=r"pip install 'hf-shrink\[plots\]'"):
        plot_sensitivity(result(), tmp_path)


def test_what_cannot_be_drawn_or_written_is_said(tmp_path):
    with pytest.raises(RecipeError, match="no points to draw"):
        plot_sensitivity(Sensitivity((), 0.0), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="'file' cannot be written"):
        plot_sensitivity(result(), tmp_path / "file")


@pytest.mark.parametrize(("structure", "noun"), [("layers", "layer"), ("hidden", "width"), ("n_of_m", "weights")])
def test_what_is_removed_is_called_what_it_is(structure, noun, tmp_path, monkeypatch):
    """A whole layer that left was drawn as weights removed."""
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: drawn.append(self))
    found = result()
    points = tuple(dataclasses.replace(point, structure=structure) for point in found.points)
    plot_sensitivity(dataclasses.replace(found, points=points), tmp_path)
    assert {axes.get_xlabel() for axes in drawn[0].axes if axes.get_title()} == {f"{noun} removed (%)"}
