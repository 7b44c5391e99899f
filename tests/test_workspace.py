"""The run's folder: nothing of the user's is lost, nothing half-written counts."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_shrink.errors import IntegrityError, RecipeError, ResourceError
from hf_shrink.workspace import MANIFEST, Workspace

RECIPE = {"task": "text-classification"}


def stage(text: str) -> Any:
    """A stage that writes one file."""

    def write(folder: Path) -> dict[str, Any]:
        (folder / "weights").write_text(text)
        return {"wrote": text}

    return write


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path / "run")
    made.begin(RECIPE, {"data": "aa"})
    return made


def test_a_folder_with_foreign_files_is_refused_and_untouched(tmp_path: Path):
    """A run that writes among somebody's files can overwrite a model that took days."""
    for name in ("model.safetensors", "notes.txt", "a", "b"):
        (tmp_path / name).write_text("mine")
    found = Workspace(tmp_path)
    with pytest.raises(RecipeError, match=r"a, b, model\.safetensors and 1 more"):
        found.refuse_strangers()
    found.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "model.safetensors", "notes.txt"]


def test_a_file_in_place_of_the_folder_is_a_resource_error(tmp_path: Path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ResourceError, match="is a file"):
        Workspace(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_below_a_file_is_a_resource_error(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ResourceError, match="cannot be written"):
        Workspace(tmp_path / "file" / "run")


def test_two_runs_cannot_share_a_folder(workspace: Workspace):
    """Two writers would mix their stages."""
    with pytest.raises(ResourceError, match="another run"):
        Workspace(workspace.folder)
    workspace.close()
    Workspace(workspace.folder).close()


def test_a_finished_stage_is_known_to_a_later_process(workspace: Workspace):
    workspace.write_stage("student", stage("one"))
    workspace.close()
    later = Workspace(workspace.folder)
    later.begin(RECIPE, {"data": "aa"})
    assert later.result("student") == {"wrote": "one"}
    assert later.result("shrunk") is None


def test_a_stage_that_fails_half_way_leaves_the_earlier_one_and_counts_as_not_done(workspace: Workspace):
    """A kill while a stage writes must not leave a half-written model that looks whole."""

    def breaks(folder: Path) -> dict[str, Any]:
        (folder / "weights").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workspace.write_stage("student", breaks)
    assert workspace.result("student") is None
    assert not workspace.stage_folder("student").exists()
    workspace.write_stage("student", stage("whole"))
    assert (workspace.stage_folder("student") / "weights").read_text() == "whole"


def test_a_changed_file_is_an_integrity_error_and_a_deleted_one_runs_the_stage_again(workspace: Workspace):
    """A truncated model would be measured and published as if it were the trained one."""
    workspace.write_stage("student", stage("one"))
    path = workspace.stage_folder("student") / "weights"
    path.write_text("two")
    with pytest.raises(IntegrityError, match="stages/student/weights"):
        workspace.result("student")
    path.unlink()
    assert workspace.result("student") is None


def test_changed_inputs_are_named(workspace: Workspace):
    """The same recipe over other data would mix two experiments in one report."""
    with pytest.raises(IntegrityError, match="data changed"):
        workspace.begin(RECIPE, {"data": "bb"})


def test_clear_removes_what_the_run_wrote_and_nothing_else(workspace: Workspace):
    workspace.write_artefact("final", stage("one"))
    (workspace.folder / "mine.txt").write_text("mine")
    workspace.clear()
    assert {p.name for p in workspace.folder.iterdir() if not p.name.startswith(".")} == {"mine.txt"}


def test_clear_stays_inside_the_folder(workspace: Workspace):
    """A manifest that came with a downloaded folder could otherwise delete files elsewhere."""
    outside = workspace.folder.parent / "outside"
    outside.write_text("mine")
    workspace.manifest["stages"]["evil"] = {"files": {"../outside": "0", str(outside): "0"}, "result": {}}
    workspace.clear()
    assert outside.read_text() == "mine"


def test_a_broken_manifest_is_an_integrity_error_unless_the_user_starts_anew(tmp_path: Path):
    (tmp_path / MANIFEST).write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(IntegrityError, match="not a manifest"):
        Workspace(tmp_path)
    Workspace(tmp_path, overwrite=True).close()
