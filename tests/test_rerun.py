"""A run that is started again: what it keeps, makes anew or refuses. What these prevent: hours of training done twice,
results of two recipes mixed in one folder, and a user's files overwritten."""

import json
import re
import shutil
from pathlib import Path

import pytest

from hf_shrink import Recipe, run
from hf_shrink.errors import IntegrityError, RecipeError, ResourceError
from hf_shrink.files import sha256
from hf_shrink.publishing.selection import select
from tests.project import digests, quickstart


def test_a_second_run_does_nothing_and_changes_no_file(own: Path):
    """An hour of training must not be repeated because somebody looked again."""
    before = digests(own)
    outcome = run(quickstart())
    assert digests(own) == before and outcome.report["baseline"] == "teacher"


def test_a_deleted_stage_is_made_again_and_the_rest_is_kept(own: Path):
    before = digests(own / "runs/quickstart")
    shutil.rmtree(own / "runs/quickstart/stages/shrunk")
    run(quickstart())
    after = digests(own / "runs/quickstart")
    assert after["stages/shrunk/model.safetensors"] == before["stages/shrunk/model.safetensors"]
    assert after["model.safetensors"] == before["model.safetensors"]


def test_a_damaged_stage_is_an_integrity_error_naming_the_file(own: Path):
    path = own / "runs/quickstart/stages/student/model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(IntegrityError, match=r"stages/student/model\.safetensors"):
        run(quickstart())


def test_a_changed_recipe_is_shown_as_a_diff_and_refused(own: Path):
    """Two experiments mixed in one folder are neither."""
    before = digests(own)
    with pytest.raises(RecipeError, match=r"(?s)-.*bits: 8.*\+.*bits: 4.*--accept-changes quantization\.0\.bits"):
        run(quickstart("quantization.0.bits=4"))
    assert digests(own) == before


def test_an_accepted_change_runs_only_the_stages_it_reaches(own: Path):
    before = digests(own / "runs/quickstart")
    outcome = run(
        quickstart("quantization.0.bits=4", "measurement.memory=false"),
        accept_changes=["quantization.0.bits", "measurement.memory"],
    )
    after = digests(own / "runs/quickstart")
    assert after["stages/student/model.safetensors"] == before["stages/student/model.safetensors"]
    assert after["model.safetensors"] != before["model.safetensors"]
    assert outcome.report["recipe"]["quantization"] == [{"bits": 4}, {"backend": "onnx"}]


def test_a_published_recipe_makes_the_same_model_with_the_same_quality(own: Path):
    """The promise of `Reproduce` on the card: from the files that were published, in another place, with local things named."""
    (own / "published").mkdir()
    for each in select(own / "runs/quickstart").uploads:
        if each.name.startswith("hf_shrink_"):
            (own / "published" / each.name).write_bytes(each.read())
    (own / "base").rename(own / "mine")
    said = json.loads((own / "published/hf_shrink_report.json").read_text())
    mine = {"model": "mine", "teacher.model": "mine", "data.dataset": "data"}
    asked = re.findall(r"--set (\S+)=\.\.\.", (own / "runs/quickstart/README.md").read_text())
    assert asked == list(mine), "what the card asks for is what is missing"
    overrides = [*(f"{key}={mine[key]}" for key in asked), "output_dir=runs/again", "measurement.memory=false"]
    outcome = run(Recipe.from_pretrained(own / "published", overrides=overrides))
    scores = [
        {(s["name"], m["name"]): m["value"] for s in r["stages"] for m in s["measurements"] if m.get("interval")}
        for r in (said, outcome.report)
    ]
    assert scores[0] == scores[1] and ("quantized", "accuracy") in scores[0]
    assert sha256(outcome.folder / "model.safetensors") == sha256(own / "runs/quickstart/model.safetensors")
    assert outcome.report["usage"] == said["usage"]


@pytest.mark.parametrize("key", ["quantization.0.bit", "seed"])
def test_accepting_a_key_that_did_not_change_is_refused(own: Path, key: str):
    with pytest.raises(RecipeError, match="has not changed"):
        run(quickstart(), accept_changes=[key])


def test_changed_data_under_the_same_name_is_refused(own: Path):
    """The report would mix two data sets."""
    with (own / "data/train.csv").open("a") as file:
        file.write("the red door,red\n")
    with pytest.raises(IntegrityError, match="fingerprint of train"):
        run(quickstart())


def test_overwrite_starts_anew_and_leaves_the_users_files(own: Path):
    mine = own / "runs/quickstart/notes.txt"
    mine.write_text("mine")
    outcome = run(quickstart("seed=1", "quantization=null", "measurement.memory=false"), overwrite=True)
    assert mine.read_text() == "mine"
    assert [stage["name"] for stage in outcome.report["stages"]][-1] == "shrunk"


def test_output_dir_that_is_a_file_is_refused_first(own: Path):
    (own / "runs/new").write_text("mine")
    with pytest.raises(ResourceError, match="is a file"):
        run(quickstart("output_dir=runs/new", "measurement.memory=false"))
    assert (own / "runs/new").read_text() == "mine"


def test_accepted_changes_of_the_data_are_not_refused_as_changed_data(own: Path):
    """The flag that the refusal names has to work."""
    less = quickstart("data.train_samples=40", "measurement.memory=false")
    outcome = run(less, accept_changes=quickstart().changed_keys(less))
    assert outcome.report["recipe"]["data"]["train_samples"] == 40


@pytest.mark.parametrize("where", ["runs/own", "runs/own/stages/teacher"])
def test_a_run_that_would_write_over_the_model_it_starts_from_is_refused(own: Path, where: str):
    shutil.copytree("base", where)
    before = digests(own)
    with pytest.raises(RecipeError, match="lies in output_dir"):
        run(quickstart(f"model={where}", f"teacher.model={where}", "output_dir=runs/own"), overwrite=True)
    assert digests(own) == before
