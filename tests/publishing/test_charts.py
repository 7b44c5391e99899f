"""Charts of several reports: each model has its mark, and what was not measured is not drawn."""

import pytest

from hf_shrink.errors import RecipeError
from hf_shrink.measurement.compare import compare
from hf_shrink.measurement.values import ReliabilityBin, Report
from hf_shrink.publishing.charts import plot_reliability, plot_tradeoffs
from tests.publishing.report import report

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


def test_quality_is_drawn_over_size_and_over_each_latency(tmp_path, drawn):
    """A point under the wrong model's name, or in another unit, would look just as convincing."""
    stages = [Report.from_stage(stage) for stage in report()["stages"]]
    plot_tradeoffs(compare(stages, baseline="teacher"), tmp_path)
    panels = [axes for axes in drawn[0].axes if axes.get_xlabel()]
    assert [axes.get_xlabel() for axes in panels] == [
        "weights on disk (MB)", "latency p50, batch 1 (ms)", "latency p50, batch 32 (ms)"
    ]  # fmt: skip
    assert {axes.get_ylabel() for axes in panels} == {"accuracy (%)"}
    points = {text.get_text(): text.xy for text in panels[0].texts}
    assert points == {"MiniLM-L6": (90, 80), "3 layers": (56, 79), "8 bits": (45, 78)}, "the floor has no size"
    with pytest.raises(RecipeError, match="no model has both"):
        plot_tradeoffs(compare(stages[:1]), tmp_path)


def test_models_judged_on_other_data_share_no_panel(tmp_path, drawn):
    """Two dots in one picture are taken for a comparison."""
    stages = [Report.from_stage(stage) for stage in report()["stages"][1:3]]
    score, *rest = stages[1].measurements
    other = stages[1].model_copy(update={"measurements": (score.model_copy(update={"setting": "9 examples, labels 0"}), *rest)})
    table = compare([stages[0], other])
    plot_tradeoffs(table, tmp_path)
    panels = [axes for axes in drawn[0].axes if axes.get_xlabel()]
    assert len(panels) == 6 and all(len(axes.texts) == 1 for axes in panels)
    assert [line for line in table.warnings if line.startswith("accuracy: measured in 2 different ways")]
    assert table.warnings[0] in table.markdown() and compare(stages).warnings == ()
