"""The checkpoint store on the file system, without a model."""

import os
import shutil

import pytest

from hf_shrink.training.manifest import MANIFEST, first_fault, write_manifest
from hf_shrink.training.store import STAGING, checkpoints, commit, newest_whole, rotate, tidy


def staged(folder, step, content="x"):
    path = folder / STAGING / f"checkpoint-{step}"
    (path / "below").mkdir(parents=True)
    (path / "model").write_text(content * 100)
    (path / "below" / "state").write_text(f"{step}")
    return path


def saved(folder, *steps):
    for step in steps:
        commit(staged(folder, step), folder / f"checkpoint-{step}", step=step, resumable=True)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_committed_checkpoint_is_whole_and_nothing_else_is_left(tmp_path):
    """A staging folder left behind fills the disk."""
    saved(tmp_path, 5)
    assert names(tmp_path) == ["checkpoint-5"] and first_fault(tmp_path / "checkpoint-5") is None
    assert newest_whole(tmp_path) == (tmp_path / "checkpoint-5", [])


@pytest.mark.parametrize("bit", range(8))
def test_every_changed_bit_of_the_manifest_shows(bit, tmp_path):
    """A manifest that still parses after a change would vouch for files it does not know."""
    saved(tmp_path, 5)
    path = tmp_path / "checkpoint-5" / MANIFEST
    intact = path.read_bytes()
    for position in range(len(intact)):
        path.write_bytes(intact[:position] + bytes([intact[position] ^ 1 << bit]) + intact[position + 1 :])
        assert first_fault(tmp_path / "checkpoint-5") is not None, position
    path.write_bytes(intact)
    assert first_fault(tmp_path / "checkpoint-5") is None


def test_a_whole_folder_under_another_step_is_refused(tmp_path):
    """A copy of an older checkpoint, renamed, is whole in itself."""
    saved(tmp_path, 5)
    shutil.copytree(tmp_path / "checkpoint-5", tmp_path / "checkpoint-9")
    assert newest_whole(tmp_path) == (tmp_path / "checkpoint-5", [f"checkpoint-9: {MANIFEST}: written for checkpoint-5"])


def test_rotation_goes_by_step_not_by_date_and_spares_the_best(tmp_path):
    """After a copy, dates say nothing: the newest checkpoint would go first."""
    saved(tmp_path, 2, 10, 9, 30)
    for age, step in enumerate((30, 10, 9, 2)):
        os.utime(tmp_path / f"checkpoint-{step}", (1e9 + age * 1e5, 1e9 + age * 1e5))
    rotate(tmp_path, keep=2, protected=[tmp_path / "checkpoint-9"])
    assert names(tmp_path) == ["checkpoint-30", "checkpoint-9"]


def test_rotation_keeps_the_newest_whole_one_when_a_newer_one_is_torn(tmp_path):
    """Counting a torn folder as the newest leaves nothing to resume from."""
    saved(tmp_path, 1, 2, 3)
    (tmp_path / "checkpoint-3" / "model").unlink()
    rotate(tmp_path, keep=1, protected=[])
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]


@pytest.mark.parametrize("keep", [None, 0])
def test_no_limit_removes_nothing(keep, tmp_path):
    """0 means no limit to Trainer, not nothing."""
    saved(tmp_path, 1, 2)
    rotate(tmp_path, keep=keep, protected=[])
    assert len(checkpoints(tmp_path)) == 2


def test_a_stray_folder_is_no_checkpoint(tmp_path):
    """A user's checkpoint-best must be neither resumed nor removed."""
    saved(tmp_path, 1)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-9.bak").mkdir()
    rotate(tmp_path, keep=1, protected=[])
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-9.bak", "checkpoint-best"]
    assert checkpoints(tmp_path) == [tmp_path / "checkpoint-1"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing cleans up."""


def test_a_kill_at_any_call_of_a_replacement_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    """Replacing the only checkpoint needs two renames; between them there is none under its name."""
    outcomes = set()
    for kill_at in range(200):
        folder = tmp_path / str(kill_at)
        saved(folder, 5)
        calls = []

        def counted(event, args, kill_at=kill_at, calls=calls):
            if calls is not None and event in {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}:
                calls.append(event)
                if len(calls) == kill_at + 1:
                    raise Killed

        new = staged(folder, 5, content="new")
        with killed_by(counted) as done:
            commit(new, folder / "checkpoint-5", step=5, resumable=True)
            done.append(True)
        tidy(folder)
        assert names(folder) == ["checkpoint-5"] and first_fault(folder / "checkpoint-5") is None
        outcomes.add((folder / "checkpoint-5" / "model").read_text()[:3])
        if done:
            break
    assert done and kill_at > 8 and outcomes == {"xxx", "new"}


_HOOK = []


def killed_by(hook):
    """Run a block with an audit hook; audit hooks cannot be removed, so one is added for good and given the work."""
    import sys
    from contextlib import contextmanager

    if not _HOOK:
        _HOOK.append(None)
        sys.addaudithook(lambda event, args: _HOOK[0] and _HOOK[0](event, args))

    @contextmanager
    def block():
        done = []
        _HOOK[0] = hook
        try:
            yield done
        except Killed:
            pass
        finally:
            _HOOK[0] = None

    return block()


def test_the_manifest_counts_every_file_below(tmp_path):
    """Adapters and sharded states live in folders of their own."""
    path = staged(tmp_path, 1)
    write_manifest(path, step=1, resumable=True)
    (path / "below" / "state").write_text("2")
    assert first_fault(path) == "below/state: sha256 differs"
