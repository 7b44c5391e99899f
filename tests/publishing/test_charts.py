"""Charts of several reports: each model has its mark, and what was not measured is not drawn."""

import pytest

from hf_shrink.errors import RecipeError
from hf_shrink.measurement.values import ReliabilityBin, Report
from hf_shrink.publishing.charts import plot_reliability

pytest.importorskip("matplotlib")


def with_bins(name: str) -> Report:
    bins = (
        ReliabilityBin(low=0.4, high=0.5, count=10, confidence=0.45, accuracy=0.2),
        ReliabilityBin(low=0.9, high=1.0, count=40, confidence=0.97, accuracy=0.75),
    )
    return Report(name=name, reliability=bins)


@pytest.fixture
def drawn(monkeypatch) -> list:
    """Figures that would have been written."""
    from matplotlib.figure import Figure

    found: list = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: found.append(self))
    return found


def test_reliability_has_a_panel_a_classifier_and_the_diagonal(tmp_path, drawn):
    """A bar at the middle of its bin would move the diagonal away from what is calibrated."""
    plot_reliability([with_bins("teacher"), Report(name="floor"), with_bins("student")], tmp_path)
    panels = [axes for axes in drawn[0].axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["teacher", "student"]
    bars = [(round(bar.get_x()), round(bar.get_width()), round(bar.get_height())) for bar in panels[0].patches]
    assert bars == [(40, 10, 20), (90, 10, 75)]
    diagonal, dots = panels[0].get_lines()
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 100]
    assert list(dots.get_xdata()) == [45, 97] and list(dots.get_ydata()) == [20, 75]
    with pytest.raises(RecipeError, match="no report has a reliability"):
        plot_reliability([Report(name="floor")], tmp_path)
