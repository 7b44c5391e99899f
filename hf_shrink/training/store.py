"""Checkpoints that are there whole or not at all: staged, synced, listed, renamed, and only then older ones removed."""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from hf_shrink.errors import IntegrityError, RecipeError
from hf_shrink.files import sync
from hf_shrink.training.manifest import first_fault, is_complete, is_resumable, write_manifest

STAGING = "_staging"
"""Folder inside the output folder for what is not finished. Hub uploads of a Trainer leave out names that start with _."""

_REPLACED, _REMOVED = "replaced-", "removed-"


def checkpoints(folder: Path) -> list[Path]:
    """Folders named ``checkpoint-STEP``, lowest step first; their dates mean nothing."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name) and path.is_dir()]
    return sorted(found, key=_step)


def commit(staged: Path, final: Path, *, step: int, resumable: bool) -> None:
    """Give a complete staged checkpoint its name. At any moment a kill leaves the old state or the new one.

    Args:
        staged: ``STAGING/checkpoint-STEP``, on the same disk as ``final``.
        final: may exist, from an earlier run: it is moved aside, and back by ``tidy`` where a kill comes in between.
        step: optimizer steps done.
        resumable: whether training can go on from it.
    """
    write_manifest(staged, step=step, resumable=resumable)
    aside = staged.with_name(_REPLACED + final.name)
    if final.exists():
        final.rename(aside)
    staged.rename(final)
    sync(final.parent)
    sync(staged.parent)
    shutil.rmtree(staged.parent)


def rotate(folder: Path, *, keep: int | None, protected: Iterable[Path]) -> None:
    """Remove the oldest complete checkpoints until ``keep`` are left; never the newest, never a protected one.

    A folder that is not complete is not counted and not touched.
    """
    complete = [path for path in checkpoints(folder) if is_complete(path)]
    if keep is None or keep < 1:
        return
    spared = {complete[-1], *protected}
    surplus = [path for path in complete if path not in spared][: max(len(complete) - keep, 0)]
    for path in surplus:
        (folder / STAGING).mkdir(exist_ok=True)
        path.rename(folder / STAGING / (_REMOVED + path.name))
    shutil.rmtree(folder / STAGING, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Clear what a killed run left: a checkpoint moved aside goes back where its successor never arrived."""
    for aside in (folder / STAGING).glob(f"{_REPLACED}checkpoint-*"):
        final = folder / aside.name.removeprefix(_REPLACED)
        if not final.exists():
            aside.rename(final)
    shutil.rmtree(folder / STAGING, ignore_errors=True)


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole and can be resumed, and what is wrong with each newer one."""
    faults: list[str] = []
    for path in reversed(checkpoints(folder)):
        if (fault := _obstacle(path)) is None:
            return path, faults
        faults.append(f"{path.name}: {fault}")
    return None, faults


def newest_to_resume(folder: Path) -> tuple[Path, list[str]]:
    """As ``newest_whole``, where there must be one.

    Raises:
        RecipeError: there is no checkpoint.
        IntegrityError: every checkpoint is torn; names each with its first bad file.
    """
    path, faults = newest_whole(folder)
    if path is not None:
        return path, faults
    if not faults:
        raise RecipeError(f"resume_from_checkpoint: no checkpoint in {folder.name!r}. Start without it.")
    raise IntegrityError(
        f"resume_from_checkpoint: no whole checkpoint in {folder.name!r}: {'; '.join(faults)}.\n"
        "Restore one of them from a copy, or start again without resume_from_checkpoint."
    )


def check_whole(path: Path) -> None:
    """Refuse a checkpoint asked for by path that is missing, torn or not made to be resumed.

    Raises:
        RecipeError: there is no such folder.
        IntegrityError: names its first bad file.
    """
    if not path.is_dir():
        raise RecipeError(f"resume_from_checkpoint: there is no folder {path.name!r}.")
    if (fault := _obstacle(path)) is not None:
        raise IntegrityError(
            f"resume_from_checkpoint: {path.name} is not whole: {fault}.\n"
            "Use resume_from_checkpoint=True for the newest whole one."
        )


def _obstacle(path: Path) -> str | None:
    if (fault := first_fault(path)) is not None:
        return fault
    return None if is_resumable(path) else "saved with save_only_model, without optimizer and random state"


def _step(path: Path) -> int:
    return int(path.name.rsplit("-", 1)[-1])
