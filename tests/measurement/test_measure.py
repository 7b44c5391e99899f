"""One call for every model, in memory or in a folder."""

import getpass
import json
import platform

import pytest
import torch

from hf_shrink.errors import MismatchError, NonFiniteError, RecipeError, ResourceError, ShrinkError
from hf_shrink.measurement import measures
from hf_shrink.measurement.config import EnergyConfig, MeasurementConfig
from hf_shrink.measurement.environment import environment
from hf_shrink.measurement.measure import measure, measure_all
from hf_shrink.measurement.measures import MEASURES, Measure, Row, each, rows
from hf_shrink.measurement.predictions import Predictions
from hf_shrink.measurement.subjects import Subject, explained
from hf_shrink.measurement.values import Measurement
from tests.measurement.quantised import quantised
from tests.tiny import colour_tokens, tiny_classifier, tiny_tokenizer

CONFIG = MeasurementConfig(batch_sizes=(1, 2), length=8, runs=3, bootstrap=200)


@pytest.fixture
def without_child(monkeypatch):
    """No process of its own for memory: it has tests of its own, and each takes seconds."""
    monkeypatch.setattr(measures, "memory", lambda folder, config, *, threads: [])


@pytest.mark.usefixtures("without_child")
def test_a_folder_and_its_model_in_memory_measure_the_same(tmp_path):
    """The baseline comes from a folder and the student from memory: the way in must not change a number."""
    model, data = tiny_classifier("bert"), colour_tokens(30)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    from_folder = measure(tmp_path, dataset=data, config=CONFIG)
    in_memory = measure(model, dataset=data, tokenizer=tiny_tokenizer(), folder=tmp_path, config=CONFIG)
    assert from_folder.name == tmp_path.name
    timed = {"latency_p50", "latency_p95", "throughput"}
    first, second = ([m for m in r.measurements if m.name not in timed] for r in (from_folder, in_memory))
    assert first == second
    assert {m.name for m in from_folder.measurements} == timed | {
        "parameters", "parameters_non_embedding", "parameters_non_zero", "bytes_on_disk", "bytes_in_memory", "macs", "accuracy",
        "macro_f1", "macro_precision", "macro_recall", "matthews", "confidence", "calibration_error",
    }  # fmt: skip


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2", "llama"])
def test_every_measurement_of_every_family_has_a_row_and_a_unit(family):
    """A number without a row is measured, stored and never shown."""
    report = measure(tiny_classifier(family), dataset=colour_tokens(8), tokenizer=tiny_tokenizer(), config=CONFIG)
    known = rows()
    assert len(report.measurements) == 18
    assert all(m.name in known and m.unit for m in report.measurements)
    assert report.value("bytes_on_disk") is None and report.value("memory_peak") is None


def test_a_new_entry_is_measured_and_shown_without_touching_anything_else(monkeypatch):
    """The promise of the table: one function and one line."""
    layers = Measure(
        each(lambda subject, config: [Measurement(name="layers", value=len(subject.model.bert.encoder.layer), unit="layers")]),
        {"layers": Row("layers", "lower", against="ratio")},
    )
    monkeypatch.setattr(measures, "MEASURES", {"layers": layers, **MEASURES})
    monkeypatch.setattr("hf_shrink.measurement.measure.MEASURES", {"layers": layers})
    from hf_shrink.measurement.compare import compare

    reports = measure_all([Subject(f"m{n}", model=tiny_classifier("bert", layers=n)) for n in (4, 2)], config=CONFIG)
    assert "| layers | 4 layers | 2 layers (0.50x) |" in compare(reports).markdown()


def test_quality_of_all_is_set_against_the_baseline_and_the_floor_keeps_only_quality():
    """The floor has no parameters and no latency that mean the same: its cells stay empty."""
    data = colour_tokens(20)
    guesses = Predictions.of([0] * 20, data["labels"])
    reports = measure_all(
        [
            Subject("floor", predictions=guesses),
            Subject("teacher", model=tiny_classifier("bert")),
            Subject("student", model=tiny_classifier("bert", seed=1, layers=1), did=("one layer",)),
        ],
        dataset=data,
        tokenizer=tiny_tokenizer(),
        config=CONFIG,
        baseline=1,
    )
    floor, teacher, student = reports
    assert {m.name for m in floor.measurements} <= {
        f"{s}{k}"
        for s in ("accuracy", "macro_f1", "macro_precision", "macro_recall", "matthews")
        for k in ("", "_difference", "_recovery")
    }
    assert teacher.value("accuracy_difference") is None
    assert student.value("accuracy_difference") == pytest.approx(student.value("accuracy") - teacher.value("accuracy"))
    assert student.value("parameters") < teacher.value("parameters") and student.did == ("one layer",)


@pytest.mark.usefixtures("without_child")
@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_folder_is_measured_like_any_other(tmp_path, bits):
    """Same number of weights, same MACs, fewer bytes."""
    model, small = quantised(bits)
    model.save_pretrained(tmp_path / "float")
    small.save_pretrained(tmp_path / "small")
    folders = [Subject(name, folder=tmp_path / name) for name in ("float", "small")]
    before, after = measure_all(folders, dataset=colour_tokens(12), tokenizer=tiny_tokenizer(), config=CONFIG)
    for name in ("parameters", "parameters_non_embedding", "macs"):
        assert before.value(name) == after.value(name), name
    assert after.value("bytes_on_disk") < 0.6 * before.value("bytes_on_disk")
    assert f"{bits}-bit" in after.find("latency_p50", batch=1).parts
    assert after.value("accuracy") is not None


@pytest.mark.usefixtures("without_child")
def test_made_up_weights_have_speed_but_no_quality(tmp_path):
    """transformers invents a missing task head and only warns; its accuracy would stand in the table as a fact."""
    tiny_classifier("bert").bert.save_pretrained(tmp_path)
    assert measure(tmp_path, config=CONFIG).value("latency_p50", batch=1) > 0
    with pytest.raises(MismatchError, match="ask for the head of a task"):
        measure(tmp_path, dataset=colour_tokens(5), tokenizer=tiny_tokenizer(), config=CONFIG)


def test_folders_that_cannot_be_measured_say_why_in_a_line_or_two(tmp_path):
    with pytest.raises(MismatchError, match="nowhere: not a folder"):
        measure(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MismatchError, match="loading empty: "):
        measure(tmp_path / "empty")
    model = tiny_classifier("bert")
    with torch.no_grad():
        model.bert.encoder.layer[0].attention.self.query.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(NonFiniteError, match="query"):
        measure(tmp_path / "nan")


@pytest.mark.parametrize(
    ("key", "value"), [("energy", EnergyConfig(country="DEU")), ("explain", True), ("robustness", True), ("floor", "tfidf")]
)
def test_what_one_model_alone_cannot_tell_is_refused(key, value):
    """Asked for and not there, it looks as if there had been nothing to report."""
    config = MeasurementConfig(runs=3, batch_sizes=(1,), length=4, **{key: value})
    with pytest.raises(RecipeError, match=rf"measurement\.{key}: "):
        measure(tiny_classifier(), dataset=colour_tokens(4), tokenizer=tiny_tokenizer(), config=config)


def test_the_environment_names_versions_and_no_person():
    """It is published: a host name or a user's path in it cannot be taken back."""
    found = environment()
    assert {"python", "torch", "transformers", "hf_shrink", "bitsandbytes", "cpu", "threads"} <= set(found)
    assert found["threads"] == torch.get_num_threads() and found["python"] == platform.python_version()
    text = " ".join(str(value) for value in found.values()).split()
    assert platform.node() not in text and getpass.getuser() not in text and not any("/home" in word for word in text)


def test_a_folder_s_own_code_is_neither_run_nor_asked_about(tmp_path, monkeypatch):
    """transformers asks "[y/N]" on the terminal: who types y to get on has run a stranger's file."""
    tiny_classifier("bert").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = json.loads((tmp_path / "config.json").read_text())
    auto = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": auto}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ShrinkError):
        measure(tmp_path, config=CONFIG)
    assert not (tmp_path / "ran").exists()


def test_a_missing_package_is_not_a_model_that_does_not_fit():
    """RELIABILITY B36: the exit code told scripts that the folder is wrong, where bitsandbytes was."""
    with pytest.raises(ResourceError, match=r"loading out: a package is missing: .*bitsandbytes"), explained("loading out"):
        raise ImportError("Using `bitsandbytes` 4-bit quantization requires bitsandbytes")
