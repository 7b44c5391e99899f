"""The folder of one run: what is refused before work starts, which stages are done, and what their files were."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hf_shrink.errors import IntegrityError, RecipeError, ResourceError
from hf_shrink.files import files_below, sha256, share, sync, write_text

MANIFEST = "hf_shrink_manifest.json"
STAGES = "stages"
ORDER = ("teacher", "student", "shrunk", "quantized", "recovered", "final", "onnx", "measured", "report", "tracked", "page")
"""The stages of a run; each may read what those before it left."""
_OURS = ".hf_shrink"
_LOCK = f"{_OURS}.lock"


class Follower:
    """The same folder as seen by the processes that train along but write nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def close(self) -> None:
        """Nothing to let go."""

    def stage_folder(self, stage: str) -> Path:
        """Where a stage keeps its model."""
        return self.folder / STAGES / stage

    def scratch(self, stage: str) -> Path:
        """Where a stage works (checkpoints); removed when the stage is done."""
        return self.folder / STAGES / f".{stage}"

    def result(self, stage: str) -> dict[str, Any] | None:
        """Only the leader looks: see ``Workspace.result``."""
        return None

    def write_stage(self, stage: str, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Take part in ``write``, which leaves the files to the leader."""
        return write(self.stage_folder(stage))


class Workspace(Follower):
    """``output_dir`` with its manifest: the recipe that runs here, its inputs, and each finished stage with its files.

    Args:
        folder: made where it is missing.
        overwrite: read a manifest that cannot be read as an empty one.

    Raises:
        ResourceError: the path is a file, cannot be written, or another run holds it.
        IntegrityError: the manifest cannot be read.
    """

    def __init__(self, folder: Path, *, overwrite: bool = False) -> None:
        super().__init__(folder)
        self._made, self._lock = _claim(folder)
        self._anew = False
        self._forgotten: tuple[str, ...] = ()
        self._beside: tuple[str, ...] = ()
        try:
            self.manifest = _read_manifest(folder / MANIFEST)
        except IntegrityError:
            if not overwrite:
                self.close()
                raise
            self.manifest = {}

    def close(self) -> None:
        """Let another run have the folder."""
        if not self._lock.is_locked:
            return
        with suppress(OSError):
            (self.folder / _LOCK).unlink()  # while it is ours: after the release it may be another run's
        self._lock.release()
        if self._made:
            with suppress(OSError):
                self.folder.rmdir()  # only where nothing came to be in it

    @property
    def recipe(self) -> dict[str, Any] | None:
        """The recipe that this folder belongs to, or None where no run has started here or it is to be forgotten."""
        return None if self._anew else self.manifest.get("recipe")

    def strangers(self) -> list[str]:
        """Names in a folder that no run has claimed, sorted."""
        return [] if self.manifest else sorted(p.name for p in self.folder.iterdir() if not p.name.startswith(_OURS))

    def refuse_strangers(self) -> None:
        """An error where the folder holds files that no run of ours has written."""
        if names := self.strangers():
            some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise RecipeError(
                f"output_dir {self.folder.name!r} is not empty ({some}) and holds no {MANIFEST}.\n"
                "Choose another output_dir, or pass --overwrite to write among these files."
            )

    def start_anew(self) -> None:
        """Forget the run that was here; its files are removed by ``begin``, when the new one has passed every check."""
        self._anew = True

    def clear(self) -> None:
        """Remove what the manifest lists and the folders of its stages, and nothing else; without a manifest, nothing."""
        if not (self.folder / MANIFEST).is_file():
            return
        for stage in self.manifest.get("stages", {}).values():
            for name in stage["files"]:
                if (self.folder / name).resolve().is_relative_to(self.folder.resolve()):
                    (self.folder / name).unlink(missing_ok=True)
        for stage in ORDER:
            for folder in (self.stage_folder(stage), self.scratch(stage), self._fresh(stage)):
                shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            (self.folder / STAGES).rmdir()  # only where nothing of the user's is in it
        (self.folder / MANIFEST).unlink()
        self.manifest = {}

    def begin(self, recipe: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        """Claim the folder for a recipe and the fingerprints of what it reads.

        Raises:
            IntegrityError: the folder's earlier run read other data or other weights under the same names.
        """
        if self._anew:
            self.clear()
            self._anew = False
        before = self.manifest.get("inputs", {})
        for name in sorted(set(before) & set(inputs)):
            if before[name] != inputs[name]:
                raise IntegrityError(
                    f"{self.folder.name}: {name} changed since this run began ({before[name][:12]} -> {inputs[name][:12]}).\n"
                    "Put it back, choose another output_dir, or pass --overwrite to start anew."
                )
        for stage in self._forgotten:  # before the new recipe is noted: its training must not go on from these checkpoints
            shutil.rmtree(self.scratch(stage), ignore_errors=True)
        for name in self._beside:  # graphs and adapters of another recipe: beside a model of the new one they would count
            (self.folder / name).unlink(missing_ok=True)
        self.manifest = {
            "schema_version": 1,
            "recipe": dict(recipe),
            "inputs": dict(inputs),
            "stages": self.manifest.get("stages", {}),
        }
        self._save()

    def forget(self, stages: Iterable[str], inputs: Iterable[str] = ()) -> None:
        """These stages are to run again from their start, and these inputs may differ.

        ``begin`` makes it so: nothing on the disk changes before the recipe has passed every check.
        """
        self._forgotten = tuple(stages)
        known = (
            self.manifest["stages"].get(name, {}).get("files", ()) for name in ("final", "onnx") if name in self._forgotten
        )
        self._beside = tuple(path for files in known for path in files if "/" in path)
        for name in self._forgotten:
            self.manifest["stages"].pop(name, None)
        for name in inputs:
            self.manifest["inputs"].pop(name, None)

    def result(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage left to know, or None where it has to run.

        Raises:
            IntegrityError: a file of the stage is not what it was. A missing file only makes the stage run again.
        """
        entry = self.manifest.get("stages", {}).get(stage)
        if entry is None or any(not (self.folder / name).is_file() for name in entry["files"]):
            return None
        for name, digest in entry["files"].items():
            if sha256(self.folder / name) != digest:
                raise IntegrityError(
                    f"{self.folder.name}/{name}: changed since stage {stage!r} wrote it.\n"
                    "Put it back, delete it to run the stage again, or pass --overwrite to start anew."
                )
        result: dict[str, Any] = entry["result"]
        return result

    def write_stage(self, stage: str, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Let ``write`` fill a fresh folder, put it in place whole, and note the stage as done.

        Where it leaves other files than it did before, the stages after it have to run again, too.
        """
        return self._place(stage, self.stage_folder(stage), write)

    def write_artefact(
        self, stage: str, write: Callable[[Path], dict[str, Any]], *, reaches: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """As ``write_stage``, but the files land beside the manifest: they are what the user came for.

        Args:
            stage: its name.
            write: fills a fresh folder; returns what is to be known of the stage.
            reaches: stages that have to run again where the files differ; None takes all that come after.
        """
        return self._place(stage, self.folder, write, reaches)

    def withdraw(self, stage: str) -> None:
        """Remove the files of a finished stage; what is known of it stays, with ``withdrawn``."""
        entry = self.manifest["stages"][stage]
        self.manifest["stages"][stage] = {"files": {}, "result": {**entry["result"], "withdrawn": True}}
        self._save()
        for name in entry["files"]:
            (self.folder / name).unlink(missing_ok=True)
            with suppress(OSError):
                (self.folder / name).parent.rmdir()  # only where nothing else is in it

    def _place(
        self,
        stage: str,
        target: Path,
        write: Callable[[Path], dict[str, Any]],
        reaches: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        fresh = self._fresh(stage)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        result = write(fresh)
        written = [path.relative_to(fresh) for path in files_below(fresh)]
        for name in written:
            share(fresh / name)
            sync(fresh / name)
        before = self.manifest["stages"].pop(stage, None)
        if before is not None:
            self._save()  # a kill from here on must not leave new files beside the old digests
        if target != self.folder:
            shutil.rmtree(target, ignore_errors=True)
        for name in written:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).replace(target / name)
        sync(target)
        shutil.rmtree(fresh)
        files = {(target / name).relative_to(self.folder).as_posix(): sha256(target / name) for name in written}
        if before is None or before["files"] != files:
            for later in ORDER[ORDER.index(stage) + 1 :] if reaches is None else reaches:
                self.manifest["stages"].pop(later, None)
            for name in before["files"] if before is not None else ():
                if name not in files:  # of the stage in another form: it would be published beside the new one
                    (self.folder / name).unlink(missing_ok=True)
        self.manifest["stages"][stage] = {"files": files, "result": result}
        self._save()
        shutil.rmtree(self.scratch(stage), ignore_errors=True)
        return result

    def _fresh(self, stage: str) -> Path:
        return self.folder / STAGES / f".{stage}.partial"

    def _save(self) -> None:
        write_text(self.folder / MANIFEST, json.dumps(self.manifest, indent=1) + "\n")


def _claim(folder: Path) -> tuple[bool, FileLock]:
    """Whether the folder had to be made, and the lock on it."""
    try:
        made = not folder.exists()
        if not made and not folder.is_dir():
            raise ResourceError(f"output_dir {folder.name!r} is a file; choose a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"{_OURS}.{os.getpid()}"
        probe.touch()
        probe.unlink()
        lock = FileLock(folder / _LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise ResourceError(
            f"output_dir {folder.name!r}: another run is at work here; wait for it or choose another."
        ) from None
    except OSError as error:
        raise ResourceError(f"output_dir {folder.name!r} cannot be written: {error.strerror}; choose another folder.") from None
    return made, lock


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["schema_version"] == 1 and {"recipe", "inputs", "stages"} <= manifest.keys():
            return dict(manifest)
    except (ValueError, KeyError, TypeError):
        pass
    raise IntegrityError(f"{path.parent.name}/{MANIFEST}: not a manifest of this version; pass --overwrite to start anew.")
