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


def test_clear_leaves_a_folder_named_like_ours_where_no_run_has_been(tmp_path: Path):
    """`--overwrite` among somebody's files must not take their `stages` for ours."""
    (tmp_path / "stages" / "teacher").mkdir(parents=True)
    (tmp_path / "stages" / "teacher" / "mine.txt").write_text("mine")
    found = Workspace(tmp_path)
    found.clear()
    assert (tmp_path / "stages" / "teacher" / "mine.txt").read_text() == "mine"


def test_clear_leaves_what_the_user_put_among_the_stages(workspace: Workspace):
    workspace.write_stage("student", stage("one"))
    (workspace.folder / "stages" / "mine.txt").write_text("mine")
    workspace.clear()
    assert [p.name for p in (workspace.folder / "stages").iterdir()] == ["mine.txt"]


def test_starting_anew_removes_nothing_before_the_new_run_begins(workspace: Workspace):
    """A typo in the new recipe would otherwise cost the run that it was to replace."""
    workspace.write_stage("student", stage("one"))
    workspace.close()
    again = Workspace(workspace.folder)
    again.start_anew()
    assert again.recipe is None and (again.stage_folder("student") / "weights").exists()
    again.begin({"task": "other"}, {"data": "bb"})
    assert again.recipe == {"task": "other"} and again.result("student") is None
    assert not again.stage_folder("student").exists()


def test_forgotten_stages_start_from_nothing_and_only_when_the_run_begins(workspace: Workspace):
    """Checkpoints of the recipe before would be resumed under the new one: two experiments in one model."""
    workspace.write_stage("student", stage("one"))
    workspace.scratch("student").mkdir(parents=True)
    workspace.close()
    refused = Workspace(workspace.folder)
    refused.forget(["student", "final"], inputs=["data"])
    refused.close()
    assert workspace.scratch("student").exists()
    later = Workspace(workspace.folder)
    assert later.result("student") == {"wrote": "one"}
    later.forget(["student", "final"], inputs=["data"])
    later.begin({"task": "other"}, {"data": "bb"})
    assert later.result("student") is None and not later.scratch("student").exists()


@pytest.mark.parametrize(("text", "stays"), [("one", True), ("two", False)])
def test_a_stage_made_again_differently_makes_the_later_ones_run_again(workspace: Workspace, text: str, stays: bool):
    """A student trained anew beside the shrunk model of the old one: the report would mix two models."""
    workspace.write_stage("student", stage("one"))
    workspace.write_stage("shrunk", stage("small"))
    (workspace.stage_folder("student") / "weights").unlink()
    workspace.write_stage("student", stage(text))
    assert (workspace.result("shrunk") is not None) == stays


def test_a_kill_while_files_move_into_place_makes_the_stage_run_again(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    """The old digests beside new files would be called damage."""
    workspace.write_artefact("final", stage("one"))
    (workspace.folder / "weights").unlink()

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hf_shrink.workspace.share", lambda path: None)
        patch.setattr("hf_shrink.workspace.sync", lambda path: killed(path) if path == workspace.folder else None)
        with pytest.raises(KeyboardInterrupt):
            workspace.write_artefact("final", stage("two"))
    workspace.close()
    later = Workspace(workspace.folder)
    later.begin(RECIPE, {"data": "aa"})
    assert (later.folder / "weights").read_text() == "two" and later.result("final") is None


def test_what_a_kill_left_of_our_own_is_no_stranger(tmp_path: Path):
    """A run killed while it noted its recipe could not be started again."""
    (tmp_path / ".hf_shrink_manifest.json.partial").write_text("{")
    found = Workspace(tmp_path)
    found.refuse_strangers()
    found.close()


def test_closing_twice_leaves_the_next_runs_lock(workspace: Workspace):
    workspace.close()
    other = Workspace(workspace.folder)
    workspace.close()
    with pytest.raises(ResourceError, match="another run"):
        Workspace(workspace.folder)
    other.close()
