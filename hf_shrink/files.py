"""Files that survive a power cut: hash, sync, replace in one step."""

import hashlib
import os
from pathlib import Path


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Ask the system to put a file's bytes, or a folder's entries, on the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write ``path`` whole or not at all: a reader sees the old text or the new one, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def share(path: Path) -> None:
    """Give a file the permissions that a file opened for writing gets here; safetensors makes its files private."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def files_below(folder: Path) -> list[Path]:
    """Every regular file below ``folder``, sorted; links are not followed."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
