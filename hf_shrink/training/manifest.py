"""What a checkpoint holds: every file with its size and sha256, and the optimizer step it belongs to."""

import hashlib
import json
from pathlib import Path
from typing import Any

from hf_shrink.files import files_below, sha256, sync, write_text

MANIFEST = "checkpoint_manifest.json"


def write_manifest(folder: Path, *, step: int, resumable: bool) -> None:
    """Put every file below ``folder`` on the disk, then list them; the manifest comes last, so it never lists a part.

    Args:
        folder: the checkpoint, complete but for this file.
        step: optimizer steps done.
        resumable: whether training can go on from it, that is, whether optimizer and random state are in it.
    """
    files = {}
    for path in files_below(folder):
        sync(path)
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": sha256(path)}
    for below in (path for path in folder.rglob("*") if path.is_dir()):
        sync(below)
    write_text(folder / MANIFEST, _render({"version": 1, "step": step, "resumable": resumable, "files": files}))


def first_fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, ``optimizer.pt: missing``, or None where it is whole. Reads every byte."""
    manifest = _read(folder)
    if isinstance(manifest, str):
        return manifest
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name}: missing"
        if path.stat().st_size != expected["size"]:
            return f"{name}: {path.stat().st_size} bytes instead of {expected['size']}"
        if sha256(path) != expected["sha256"]:
            return f"{name}: sha256 differs"
    return None


def is_complete(folder: Path) -> bool:
    """Whether the manifest and every file it lists are there with their size: quick, does not read the files."""
    manifest = _read(folder)
    return not isinstance(manifest, str) and all(
        (folder / name).is_file() and (folder / name).stat().st_size == expected["size"]
        for name, expected in manifest["files"].items()
    )


def is_resumable(folder: Path) -> bool:
    """Whether a whole checkpoint holds what training needs to go on as if it had never stopped."""
    manifest = _read(folder)
    return not isinstance(manifest, str) and bool(manifest["resumable"])


def _read(folder: Path) -> dict[str, Any] | str:
    path = folder / MANIFEST
    if not path.is_file():
        return f"{MANIFEST}: missing"
    try:
        text = path.read_text(encoding="utf-8")
        manifest: dict[str, Any] = json.loads(text)
        intact = text == _render({name: manifest[name] for name in ("version", "step", "resumable", "files")})
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        return f"{MANIFEST}: damaged"
    if folder.name != f"checkpoint-{manifest['step']}":
        return f"{MANIFEST}: written for checkpoint-{manifest['step']}"
    return manifest


def _render(content: dict[str, Any]) -> str:
    """One text for one content, closed by its own sha256, so that a single changed bit shows."""
    body = json.dumps(content, indent=1, sort_keys=True)
    return json.dumps({**content, "digest": hashlib.sha256(body.encode()).hexdigest()}, indent=1, sort_keys=True) + "\n"
