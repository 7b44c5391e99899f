"""A run behind a gate: what is left in the folder, what is said, and that a changed gate trains nothing."""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from typer.testing import CliRunner

from hf_shrink import Recipe, gated, pipeline, run, trainings
from hf_shrink.cli import app
from hf_shrink.errors import IntegrityError, QualityError, RecipeError
from hf_shrink.files import sha256
from hf_shrink.inspection import inspect_model
from hf_shrink.measurement.gate import judge_gate
from hf_shrink.plan import make_plan
from hf_shrink.publishing import usage
from hf_shrink.publishing.push import push
from hf_shrink.verification import verify_model

FOLDER = Path("runs/quickstart")


@pytest.fixture
def own(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the finished project, as the current folder; training in it is an error."""
    shutil.copytree(project, tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")
    monkeypatch.setattr(trainings, "_train", lambda *_, **__: pytest.fail("trained again"))
    yield tmp_path / "own"


def recipe(gate: str) -> Recipe:
    return Recipe.from_yaml("recipes/quickstart.yaml", [f"gate={gate}"])


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """What the gate is to find, stage by stage; scores of a model of two steps would be chance."""
    told = dict.fromkeys(("student", "shrunk", "quantized", "onnx"), True)

    def judge(*args: Any, **words: Any) -> Any:
        found = judge_gate(*args, **words)
        return dataclasses.replace(
            found, stages=tuple(dataclasses.replace(stage, held=told[stage.name]) for stage in found.stages)
        )

    monkeypatch.setattr(gated, "judge_gate", judge)
    return told


def dtypes() -> set[str]:
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def stages() -> dict[str, Any]:
    return json.loads((FOLDER / "hf_shrink_report.json").read_text())


def test_a_gate_that_holds_changes_nothing_but_the_report(own: Path, held: dict[str, bool]):
    """No --accept-changes: to look at a finished run through a gate is no other run."""
    before = sha256(FOLDER / "model.safetensors")
    report = run(recipe("{keep: 0.9}")).report
    assert report["gate"]["held"] and report["gate"]["dropped"] == {} and report["gate"]["metric"] == "accuracy"
    assert sha256(FOLDER / "model.safetensors") == before and (FOLDER / "onnx").is_dir()
    assert [s["name"] for s in report["stages"]] == ["floor", "teacher", "student", "shrunk", "quantized", "onnx"]


def test_a_missed_gate_leaves_everything_to_look_at_and_publishes_nothing(
    own: Path, held: dict[str, bool], monkeypatch: pytest.MonkeyPatch
):
    """A model that its own recipe calls too bad must not reach strangers, by either door."""
    held["quantized"] = False
    monkeypatch.setattr(pipeline, "preflight", lambda target: None)
    monkeypatch.setattr(pipeline, "push_to", lambda *_: pytest.fail("published"))
    missed = Recipe.from_yaml("recipes/quickstart.yaml", ["gate={max_drop: 3}", "publishing.push_to=alice/model"])
    for _ in range(2):  # the second time finds it all there, and says the same
        with pytest.raises(QualityError) as caught:
            run(missed)
    lines = str(caught.value).splitlines()
    assert caught.value.code == 7 and len(lines) == 3
    assert re.match(r"gate missed: accuracy of quantized is .* %.* is needed.* 3 points below that of the teacher", lines[0])
    assert "quickstart" in lines[1] and "`gate`" in lines[2]
    assert not stages()["gate"]["held"] and "misses its quality gate" in (FOLDER / "README.md").read_text()
    assert dtypes() >= {"I8"}
    with pytest.raises(QualityError, match="gate missed"):
        push(FOLDER, "alice/model", dry_run=True)


def test_rolling_back_keeps_the_last_stage_that_held_and_a_looser_gate_brings_the_rest_again(
    own: Path, held: dict[str, bool], capsys: pytest.CaptureFixture[str]
):
    """int8 files in a folder whose card speaks of the float model, or numbers of a model that is gone."""
    whole = {path: sha256(FOLDER / path) for path in ("model.safetensors", "onnx/model_quantized.onnx")}
    measured = sha256(FOLDER / "stages/measured/measurements.json")
    held |= {"quantized": False, "onnx": False}
    outcome = run(recipe("{keep: 0.9, on_miss: roll_back}"))
    report = outcome.report
    assert (
        report["gate"]["held"]
        and report["gate"]["model"] == "shrunk"
        and set(report["gate"]["dropped"]) == {"quantized", "onnx"}
    )
    assert [s["name"] for s in report["stages"]][-1] == "shrunk" and [s["name"] for s in report["dropped"]] == [
        "quantized",
        "onnx",
    ]
    assert dtypes() == {"F32"} and not (FOLDER / "onnx").exists() and "onnx" not in report
    assert sha256(FOLDER / "model.safetensors") == sha256(FOLDER / "stages/shrunk/model.safetensors")
    card = (FOLDER / "README.md").read_text()
    assert "int8" not in card.split("---")[1] and "quantized" not in card.split("---")[1] and "Rolled back" in card
    assert "onnxruntime" not in card.split("## Reproduce")[0]
    from rich.console import Console

    Console(width=200).print(outcome.rich())
    assert "rolled back: quantized." in capsys.readouterr().out
    assert not [line for line in verify_model(str(FOLDER)).unknown if "zeros" in line] and inspect_model(str(FOLDER)).to_json()
    before = {path.name: sha256(path) for path in FOLDER.iterdir() if path.is_file()}
    run(recipe("{keep: 0.9, on_miss: roll_back}"))
    assert {path.name: sha256(path) for path in FOLDER.iterdir() if path.is_file()} == before, "done is done"
    held |= {"quantized": True, "onnx": True}
    again = run(recipe("{keep: 0.8, on_miss: roll_back}")).report
    assert again["gate"]["dropped"] == {} and {path: sha256(FOLDER / path) for path in whole} == whole
    assert sha256(FOLDER / "stages/measured/measurements.json") == measured, "measured again"


@pytest.mark.parametrize(
    ("missed", "model", "dropped"),
    [
        ({"onnx"}, "quantized", {"onnx"}),
        ({"quantized"}, "shrunk", {"quantized"}),
        ({"quantized", "shrunk"}, "student", {"quantized", "shrunk", "onnx"}),
        ({"student", "shrunk"}, "quantized", set()),
    ],
)
def test_which_stage_is_left(own: Path, held: dict[str, bool], missed: set[str], model: str, dropped: set[str]):
    """A graph of a model that was dropped is not the model beside it."""
    held |= dict.fromkeys(missed, False)
    found = decided("{keep: 0.9, on_miss: roll_back}")
    assert found.held and (found.model, set(found.dropped)) == (model, dropped) and found.graph == ("onnx" not in dropped)


def decided(gate: str) -> Any:
    from hf_shrink.measured import Measured
    from hf_shrink.measurement.reports import read_report

    reports, baseline = read_report(FOLDER)
    found = Measured(tuple(reports), [r.name for r in reports].index(str(baseline)), {}, 0.0)
    return gated.decide(recipe(gate), ("red", "green", "blue"), found)


def test_nothing_that_held_is_a_missed_gate(own: Path, held: dict[str, bool]):
    """Rolled back to the teacher, the run would hand over a model that nobody asked to be made."""
    before = sha256(FOLDER / "model.safetensors")
    held |= dict.fromkeys(held, False)
    with pytest.raises(QualityError):
        run(recipe("{keep: 0.9, on_miss: roll_back}"))
    assert sha256(FOLDER / "model.safetensors") == before and not stages()["gate"]["held"]


def test_the_plan_shows_the_gate_and_refuses_another_task_s_metric(own: Path):
    lines = list(make_plan(recipe("{keep: 0.98, on_miss: roll_back}")).stages[-1].lines())
    assert any("accuracy at least 98 % of the teacher's; where it does not hold, keeps the last" in line for line in lines)
    with pytest.raises(RecipeError, match="does not measure 'entity_f1'"):
        make_plan(recipe("{metric: entity_f1, keep: 0.98}"))


def test_an_edited_card_stops_a_run_before_it_trains_and_mine_survives_one(own: Path, held: dict[str, bool]):
    """Refused at the end, the card costs the night; replaced in silence, it costs the afternoon it took to write."""
    path = FOLDER / "README.md"
    card = path.read_text()
    path.write_text(card.replace("## Limits", "## Limitations") + "\n## Mine\n")
    with pytest.raises(RecipeError, match="limits"):
        run(recipe("{keep: 0.9}"))
    path.write_text(card + "\n## Mine\n")
    run(recipe("{keep: 0.9}"))
    assert path.read_text().rstrip().endswith("## Mine") and "## Quality gate" in path.read_text()
    run(recipe("{keep: 0.9}"))
    path.unlink()
    run(recipe("{keep: 0.9}"))
    assert "## Quality gate" in path.read_text() and "## Mine" not in path.read_text()


def test_the_command_ends_with_7_after_all_is_written_and_with_0_where_rolling_back_left_something(
    own: Path, held: dict[str, bool]
):
    """A script that looks at the exit code alone would publish what missed, or throw away what held."""

    def command(gate: str) -> Any:
        return CliRunner().invoke(app, ["run", "recipes/quickstart.yaml", "--json", "--set", f"gate={gate}"])

    written = [FOLDER / name for name in ("hf_shrink_report.json", "README.md", "report.html")]
    for path in written:
        path.unlink()
    held["quantized"] = False
    missed = command("{keep: 0.9}")
    assert missed.exit_code == 7 and missed.stdout == "" and "gate missed: accuracy of quantized" in missed.stderr
    assert not stages()["gate"]["held"] and "misses its quality gate" in written[1].read_text() and written[2].is_file()
    assert {stage["name"] for stage in stages()["stages"]} >= {"teacher", "student", "shrunk", "quantized"}, "all to see why"
    rolled = command("{keep: 0.9, on_miss: roll_back}")
    assert rolled.exit_code == 0 and json.loads(rolled.stdout)["gate"]["model"] == "shrunk" and dtypes() == {"F32"}
    held |= dict.fromkeys(held, False)
    nothing = command("{keep: 0.8, on_miss: roll_back}")
    assert nothing.exit_code == 7 and nothing.stdout == "" and not stages()["gate"]["held"]
    assert "misses its quality gate" in written[1].read_text()


def test_a_missed_gate_is_said_before_code_that_fails_and_no_card_of_another_model_is_left(
    own: Path, held: dict[str, bool], monkeypatch: pytest.MonkeyPatch
):
    """Hidden behind the code, the gate costs a repair of what nobody will publish; and the old card's numbers would stand."""
    card = FOLDER / "README.md"
    card.write_text(card.read_text() + "\n## Mine\n")
    held["quantized"] = False
    with monkeypatch.context() as broken:
        broken.setitem(usage._CALLS, "text-classification", "print(model.words)")
        for _ in range(2):
            with pytest.raises(QualityError) as caught:
                run(recipe("{keep: 0.9}"))
        assert "on the card" not in str(caught.value) and not stages()["gate"]["held"]
        assert "line 4" in stages()["usage"]["model"]["failed"] and (FOLDER / "report.html").is_file()
        assert not card.exists() and "## Mine" in (FOLDER / "README.before.md").read_text()
        held["quantized"] = True
        with pytest.raises(IntegrityError, match="line 4"):
            run(recipe("{keep: 0.8}"))
    run(recipe("{keep: 0.8}"))
    assert card.read_text().rstrip().endswith("## Mine") and "Executed when" in card.read_text()
    assert not (FOLDER / "README.before.md").exists() and "failed" not in stages()["usage"]["model"]
