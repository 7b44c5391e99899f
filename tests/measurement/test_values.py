"""Measurements keep numbers plain and finite, and know what they may be compared with."""

import json

import numpy as np
import pytest
import torch

from hf_shrink.errors import RecipeError
from hf_shrink.measurement.values import Measurement, Report


def timed(value: float, batch: int, precision: str = "float32") -> Measurement:
    return Measurement(
        name="latency_p50",
        value=value,
        unit="ms",
        setting=f"cpu, 1 thread, batch {batch}, 64 tokens, 20 rounds after 3, {precision}",
    )


@pytest.mark.parametrize("value", [np.float64(1.5), np.float32(1.5), np.array(1.5), torch.tensor(1.5)])
def test_numbers_of_other_libraries_become_plain_floats(value):
    """A numpy float in a card's metadata writes YAML that can never be loaded again."""
    found = Measurement(name="x", value=value, unit="ms")
    assert type(found.value) is float and found.value == 1.5
    assert type(Measurement(name="x", value=np.int64(3), unit="").value) is int


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("-inf"), "3", None, True])
def test_what_is_no_finite_number_is_refused(value):
    """A NaN accuracy would be published and compare as neither better nor worse."""
    with pytest.raises(RecipeError):
        Measurement(name="x", value=value, unit="ms")


def test_a_report_survives_json_and_keeps_integers_and_intervals():
    """The card and `compare` read only the file: what is lost there is lost for good."""
    report = Report(
        name="student",
        title="3 layers",
        did=("kept 3 layers",),
        notes=("a note",),
        measurements=(
            Measurement(name="parameters", value=22_713_216, unit="parameters"),
            Measurement(name="accuracy", value=79.1, unit="%", setting="10 examples", interval=(77.0, 81.2)),
        ),
    )
    stage = json.loads(json.dumps(report.to_stage()))
    assert Report.from_stage(stage) == report
    assert set(stage) == {"name", "title", "did", "measurements", "notes"}
    assert stage["measurements"][0] == {"name": "parameters", "value": 22_713_216, "unit": "parameters", "setting": ""}


def test_a_value_is_found_by_its_setting_and_not_guessed():
    """Batch 1 reported where batch 32 was asked for is a wrong number that looks right."""
    report = Report(name="m", measurements=(timed(8.0, 1), timed(90.0, 32)))
    assert report.value("latency_p50", batch=1) == 8.0
    assert report.value("latency_p50", batch=32, tokens=64) == 90.0
    assert report.value("latency_p50", batch=32, threads=1) == 90.0
    assert report.value("latency_p50", batch=2) is None
    assert report.value("macs") is None
    with pytest.raises(RecipeError, match=r"batch 1.*batch 32"):
        report.value("latency_p50")


def test_precision_may_differ_between_compared_models_but_nothing_else():
    """Eight bits are compared with float on purpose; two threads with one thread never."""
    assert timed(1.0, 1).conditions == timed(1.0, 1, "8-bit").conditions
    assert timed(1.0, 1).conditions != timed(1.0, 2).conditions
