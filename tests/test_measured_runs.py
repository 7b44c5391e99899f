"""What a run measures beyond its scores, and what it leaves to look at."""

import csv
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from hf_shrink import Recipe, measured, run
from hf_shrink.errors import RecipeError
from hf_shrink.judging import measure_model
from hf_shrink.measurement import energy
from hf_shrink.measurement.reports import read_report
from hf_shrink.measurement.values import Report
from hf_shrink.plan import make_plan
from hf_shrink.publishing.page import PAGE
from hf_shrink.publishing.selection import is_published, select
from tests.project import make_project, tiny_overrides
from tests.warm import hf_shrink

ROOT = Path(__file__).parent.parent


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


def test_a_run_leaves_a_page_that_stays_at_home(project: Path):
    """It is no file of a model: nobody asked for it to be published."""
    folder = project / "runs" / "quickstart"
    text = (folder / PAGE).read_text(encoding="utf-8")
    assert "What is inside" in text and "layer 0" in text and "<svg" in text and "pruning:" in text
    assert str(project) not in text and str(Path.home()) not in text and not is_published(PAGE)
    assert PAGE in select(folder).left_out


def test_compare_prints_numbers_for_programs_and_draws_for_people(project: Path, tmp_path: Path):
    words = ["compare", str(project / "runs" / "quickstart"), "--csv"]
    done = hf_shrink(*words, "--html", str(tmp_path / "page.html"), "--plots", str(tmp_path / "plots"))
    assert done.returncode == 0, done.stderr
    lines = list(csv.DictReader(io.StringIO(done.stdout)))
    stages, _ = read_report(project / "runs" / "quickstart")
    assert {line["model"] for line in lines} == {stage.shown for stage in stages}
    size = stages[-1].find("bytes_on_disk")
    found = [line for line in lines if line["model"] == stages[-1].shown and line["measurement"] == "bytes_on_disk"]
    assert [(float(line["value"]), line["unit"]) for line in found] == [(size.value, "bytes")]
    timed = {line["setting"] for line in lines if line["measurement"] == "latency_p50"}
    assert len(timed) == 2, "one setting a batch size"
    assert "What quality costs" in (tmp_path / "page.html").read_text()
    assert sorted(p.name for p in (tmp_path / "plots").iterdir()) == [
        "reliability.png", "reliability.svg", "tradeoffs.png", "tradeoffs.svg"
    ]  # fmt: skip


def test_two_forms_at_once_and_a_page_that_cannot_be_written_are_refused(project: Path, tmp_path: Path):
    """The second form would be ignored, and the first one found missing after the measuring."""
    words = ["compare", str(project / "runs" / "quickstart")]
    assert hf_shrink(*words, "--csv", "--json").returncode == 2
    done = hf_shrink(*words, "--html", str(tmp_path / "nowhere" / "page.html"))
    assert done.returncode == 4 and "page.html: cannot be written" in done.stderr
    done = hf_shrink(words[0], str(project / "base"), "--plots", str(tmp_path / "plots"))
    assert done.returncode == 2 and "no quality to draw" in done.stderr and not (tmp_path / "plots").exists()


def test_a_plan_knows_what_could_not_be_timed(tmp_path: Path):
    """The clock comes last: everything would be trained by then."""
    words = [
        *tiny_overrides(make_project(tmp_path / "project")),
        f"output_dir={tmp_path / 'run'}",
        "measurement.more_lengths=[65]",
    ]
    with pytest.raises(RecipeError, match=r"measurement\.more_lengths: 65 tokens, but a model takes at most 64"):
        make_plan(Recipe.from_yaml(ROOT / "recipes" / "quickstart.yaml", overrides=words))


class _Steady:
    """In place of codecarbon's tracker: the same energy for each training."""

    def __init__(self, notes: Any) -> None:
        self._notes, self._hardware = notes, ()

    def start(self) -> None:
        """Nothing to do."""

    def stop(self) -> None:
        self._notes.out(SimpleNamespace(energy_consumed=0.5, emissions=0.25, duration=60.0), None)


def test_a_run_reports_the_energy_of_its_training_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Measured again, or resumed, a run would add it again or lose it; by hand: 250 g for each of three trainings."""
    pytest.importorskip("codecarbon", reason="the extra `energy` is not installed")
    monkeypatch.setattr(energy, "_tracker", lambda config, notes: _Steady(notes))
    overrides = [
        *tiny_overrides(make_project(tmp_path / "project")),
        f"output_dir={tmp_path / 'run'}",
        "quantization={bits: 4}",
    ]
    overrides.append("recovery={rank: 2, calibration_rows: 8, training: {max_steps: 1, use_cpu: true}}")
    recipe = Recipe.from_yaml(
        ROOT / "recipes" / "quickstart.yaml",
        overrides=[*overrides, "measurement.floor=null", "measurement.energy={country: DEU}"],
    )
    first = run(recipe).report
    shutil.rmtree(tmp_path / "run" / "stages" / "measured")
    again = run(recipe).report
    for report in (first, again):
        stages = {stage["name"]: Report.from_stage(stage) for stage in report["stages"]}
        taken = {name: stage.value("training_energy") for name, stage in stages.items()}
        assert taken == {"teacher": 0.5, "student": 0.5, "shrunk": None, "quantized": None, "recovered": 0.5}
    card = ModelCard.load(tmp_path / "run" / "README.md", ignore_metadata_errors=False)
    assert card.data.co2_eq_emissions == {
        "emissions": 750, "source": "codecarbon", "training_type": "fine-tuning", "geographical_location": "DEU"
    }  # fmt: skip
    assert "CO2 of its training" in card.text and "estimated" in card.text


@pytest.mark.parametrize(("result", "notes"), [({"steps": 0}, 0), ({"steps": 3}, 1), (None, 0)])
def test_a_missing_energy_is_said_only_where_something_was_trained(result: dict[str, int] | None, notes: int):
    """Adapters that only start have taken none; a training that nobody watched has, and the sum on the card lacks it."""
    recipe = Recipe.from_yaml(ROOT / "recipes" / "quickstart.yaml", overrides=["measurement.energy={country: DEU}"])
    work: Any = SimpleNamespace(result=lambda stage: result)
    assert len(measured._spent(recipe, "recovered", work).get("notes", ())) == notes


def test_measure_with_a_recipe_has_its_floor_beside_the_model(project: Path, monkeypatch: pytest.MonkeyPatch):
    """The recipe asks for it; without a word it was left out. By the second way: the floor of the recipe's own run."""
    monkeypatch.chdir(project)
    recipe = Recipe.from_yaml("recipes/quickstart.yaml", overrides=["measurement.memory=false", "measurement.robustness=false"])
    found = {report.name: report for report in measure_model("runs/quickstart", recipe).reports}
    stages = {stage.name: stage for stage in read_report(project / "runs" / "quickstart")[0]}
    assert list(found) == ["quickstart", "floor"]
    assert found["floor"].value("accuracy") == stages["floor"].value("accuracy")
    assert found["floor"].shown == stages["floor"].shown and found["floor"].find("accuracy_difference") is not None
