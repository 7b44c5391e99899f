"""Trackers that `report_to` names, through transformers' own table. What these prevent: numbers that are told twice, or
to somebody whom nobody named, curves that go with the checkpoints, and a finished run lost to a server that is away."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from hf_shrink import Recipe, run
from hf_shrink.errors import RecipeError, ResourceError
from hf_shrink.measurement.reports import NAME
from hf_shrink.plan import make_plan
from hf_shrink.tracking import summaries, tell_trackers
from hf_shrink.training.arguments import training_arguments
from hf_shrink.workspace import Workspace
from tests.project import digests, make_project

RECIPE = """
version: 1
task: text-classification
model: base
output_dir: runs/told
data: {{dataset: data, max_length: 32}}
training: {{max_steps: 2, logging_steps: 1, per_device_train_batch_size: 4, use_cpu: true, report_to: [{trackers}]}}
measurement: {{batch_sizes: [1, 2], length: 16, runs: 3, bootstrap: 100, threads: 1, memory: false}}
quantization: {{bits: 16, dtype: bfloat16}}
gate: {{keep: 0.01}}
"""


class Tracker(TrainerCallback):
    """Writes down the events it sees, and those of all of its kind."""

    seen: list[tuple[str, Any]]
    fails = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self._note("begin", None)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        self._note("log", (state.global_step, dict(logs)))

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self._note("end", None)

    def _note(self, event: str, what: Any) -> None:
        if event == self.fails:
            raise ConnectionError("the server is away")
        self.seen.append((event, what))


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Tracker]]:
    """Two trackers in transformers' table, which installs none of ours."""
    kinds = {name: type(name, (Tracker,), {"seen": []}) for name in ("ledger", "diary")}
    for name, kind in kinds.items():
        monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, name, kind)
    return kinds


def finished(folder: Path, report: dict[str, Any]) -> Workspace:
    """The folder of a run that has its report."""
    work = Workspace(folder)
    work.begin({}, {})
    work.write_artefact("report", lambda fresh: (fresh / NAME).write_text(json.dumps(report)) and {})
    return work


def measured(name: str, value: float, setting: str = "") -> dict[str, Any]:
    return {"name": name, "value": value, "unit": "", "setting": setting}


REPORT = {
    "stages": [
        {
            "name": "student",
            "measurements": [
                measured("accuracy", 75.0, "24 examples"),
                measured("latency_p50", 2.0, "cpu, batch 1, 16 tokens"),
                measured("latency_p50", 9, "cpu, batch 32, 16 tokens"),
            ],
        },
    ],
    "dropped": [{"name": "quantized", "measurements": [measured("accuracy", 50.0)]}],
    "gate": {"stages": [{"name": "quantized", "held": False}]},
}
BY_HAND = [
    {
        "eval_student/accuracy": 75.0,
        "eval_student/latency_p50/batch_1": 2.0,
        "eval_student/latency_p50/batch_32": 9.0,
    },
    {"eval_quantized/accuracy": 50.0, "eval_quantized/gate_held": 0.0},
]


def recipe_for(*trackers: str) -> Recipe:
    return Recipe.from_text(RECIPE.format(trackers=", ".join(trackers)))


def test_numbers_of_one_name_are_told_apart_and_a_missed_gate_is_told(tmp_path: Path, table: dict[str, type[Tracker]]):
    """Two batch sizes under one key: the second would take the place of the first."""
    assert list(summaries(REPORT)) == BY_HAND
    tell_trackers(recipe_for("ledger"), finished(tmp_path / "run", REPORT), REPORT)
    logs = [("log", (i, numbers)) for i, numbers in enumerate(BY_HAND)]
    assert table["ledger"].seen == [("begin", None), *logs, ("end", None)]
    assert table["diary"].seen == [], "nobody named it"


def test_who_was_told_is_not_told_again_until_the_report_is_another(tmp_path: Path, table: dict[str, type[Tracker]]):
    work, ledger = finished(tmp_path / "run", REPORT), table["ledger"].seen
    tell_trackers(recipe_for("ledger"), work, REPORT)
    before, files = len(ledger), digests(tmp_path / "run")
    tell_trackers(recipe_for("ledger"), work, REPORT)
    assert len(ledger) == before and digests(tmp_path / "run") == files
    tell_trackers(recipe_for("ledger", "diary"), work, REPORT)
    assert len(ledger) == before and len(table["diary"].seen) == before
    other = {**REPORT, "dropped": []}
    work.write_artefact("report", lambda fresh: (fresh / NAME).write_text(json.dumps(other)) and {})
    tell_trackers(recipe_for("ledger"), work, other)
    assert len(ledger) > before


@pytest.mark.parametrize("event", ["begin", "log", "end"])
def test_a_tracker_that_fails_costs_a_warning_and_is_asked_again(
    tmp_path: Path, table: dict[str, type[Tracker]], monkeypatch: pytest.MonkeyPatch, event: str
):
    said: list[str] = []
    monkeypatch.setattr("hf_shrink.tracking.logger.warning", lambda text, *parts: said.append(text % parts))
    work, failing = finished(tmp_path / "run", REPORT), table["ledger"]
    failing.fails = event
    tell_trackers(recipe_for("ledger", "diary"), work, REPORT)
    assert len(said) == 1 and "ledger was not told" in said[0] and "the server is away" in said[0]
    assert len(table["diary"].seen) == 4, "one that is away must not silence the other"
    if event == "log":
        assert failing.seen == [("begin", None), ("end", None)], "left open, it would hold a run that never ends"
    failing.fails, failing.seen = "", []
    tell_trackers(recipe_for("ledger", "diary"), work, REPORT)
    assert len(failing.seen) == 4 and len(table["diary"].seen) == 4


class Writer:
    """In place of TensorBoard's: notes the folder and the scalars."""

    made: list["Writer"]

    def __init__(self, log_dir: str) -> None:
        self.folder, self.scalars, self.is_open = Path(log_dir), {}, True
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars[name, step] = value

    def add_text(self, *_: Any) -> None:
        """Arguments of the training."""

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self.is_open = False


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    """Those that transformers' own TensorBoard callback makes."""
    module: Any = ModuleType("tensorboardX")
    module.SummaryWriter = type("SummaryWriter", (Writer,), {"made": []})
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    return module.SummaryWriter.made


def test_a_run_tells_the_reports_numbers_once_and_its_curves_outlive_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writers: list[Writer]
):
    """transformers writes among the checkpoints, which are removed when the stage is done."""
    monkeypatch.chdir(make_project(tmp_path / "project", layers=1))
    report = run(recipe_for("tensorboard")).report
    training, summary = writers
    assert ("train/loss", 1) in training.scalars and not training.is_open and not summary.is_open
    stage = {m["name"]: m["value"] for m in report["stages"][0]["measurements"]}
    assert stage["bytes_on_disk"] > 0 and summary.scalars["eval/student/bytes_on_disk", 0] == stage["bytes_on_disk"]
    assert summary.scalars["eval/student/accuracy", 0] == stage["accuracy"]
    assert summary.scalars["eval/quantized/gate_held", 1] == 1.0
    assert len(summary.scalars) == len(report["gate"]["stages"]) + sum(len(each["measurements"]) for each in report["stages"])
    for writer, part in ((training, "student"), (summary, "summary")):
        assert writer.folder.parent == Path("runs/told/stages/tracked") / part
    before = digests(Path("runs/told"))
    run(recipe_for("tensorboard"))
    assert len(writers) == 2 and digests(Path("runs/told")) == before


def test_the_plan_refuses_who_cannot_be_told_and_names_who_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: dict[str, type[Tracker]]
):
    """A tracker is missed when the training begins, after an hour of the teacher's."""
    monkeypatch.chdir(make_project(tmp_path / "project", layers=1))
    with pytest.raises(RecipeError, match=r"training\.report_to: unknown name 'ledgr'.*'ledger'"):
        make_plan(recipe_for("ledgr"))
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    with pytest.raises(ResourceError, match=r"training\.report_to: wandb cannot be used: .*pip install wandb"):
        make_plan(recipe_for("wandb"))
    assert "tells ledger and diary what every stage measured" in make_plan(recipe_for("ledger", "diary")).stages[-1].does
    assert not any("tells" in line for line in make_plan(recipe_for("none")).stages[-1].does)


@pytest.mark.parametrize(
    ("words", "named"), [({}, []), ({"report_to": None}, []), ({"report_to": "ledger"}, ["ledger"]), ({"report_to": []}, [])]
)
def test_nobody_is_told_whom_nobody_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: dict[str, Any], named: list[str]
):
    """transformers adds a tracker of the platform that it finds itself on."""
    import transformers.integrations

    monkeypatch.setattr(transformers.integrations, "is_kubeflow_available", lambda: True)
    assert training_arguments(words, output_dir=tmp_path, seed=0, where="training").report_to == named
