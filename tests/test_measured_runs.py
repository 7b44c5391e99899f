"""What a run measures beyond its scores, and what it leaves to look at."""

import json
from pathlib import Path

from hf_shrink.measurement.reports import read_report


def test_a_run_measures_confidence_and_robustness_of_every_model(project: Path):
    """The function is tested elsewhere; a stage that brings no texts would simply lack the rows."""
    stages, _ = read_report(project / "runs" / "quickstart")
    judged = [stage for stage in stages if stage.name != "floor"]
    assert len(judged) >= 3
    for stage in judged:
        assert stage.value("robustness") is not None and stage.value("calibration_error") is not None
        assert "12 examples" in stage.find("robustness_typos").setting and stage.reliability
    assert judged[-1].value("divergence") >= 0 and judged[-1].value("robustness_difference") is not None
    report = json.loads((project / "runs" / "quickstart" / "hf_shrink_report.json").read_text())
    assert "robustness" not in report["better"], "what the card's metadata calls a metric is on the whole test set"
