"""A teacher's answers on the disk: Arrow files of some thousand rows each, and a manifest that says what they are."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout

from hf_shrink.errors import IntegrityError, RecipeError, ResourceError
from hf_shrink.files import sha256, share, sync, write_text
from hf_shrink.lines import without_home

MANIFEST = "hf_shrink_cache.json"
_LOCK = ".hf_shrink_cache.lock"
_KEY_BYTES = 24  # a row's key with its offset, and the offsets of its lists, about


@dataclass(frozen=True)
class Layout:
    """What a row of a cache holds.

    Attributes:
        outputs: classes, labels, values or words that the teacher answers with at each position.
        per_token: whether there is an answer for each token rather than for each row.
        top_k: how many words are kept at each position; None for all outputs.
        temperatures: those at which the rest of the words is known; empty where all outputs are kept.
        dtype: of the numbers on the disk.
        columns: what of a batch the teacher read.
        accepts: what of a batch it would read.
        rows: how many the whole cache has.
        batch_rows: how many the teacher reads at once.
        shard_rows: how many a file has.
        moves: whether padding on the left would change what the teacher says.
    """

    outputs: int
    per_token: bool
    top_k: int | None
    temperatures: tuple[float, ...]
    dtype: Literal["float32", "float16"]
    columns: tuple[str, ...]
    accepts: tuple[str, ...]
    rows: int
    batch_rows: int
    shard_rows: int
    moves: bool = False

    @property
    def id_dtype(self) -> Any:
        """The smallest type of integer that a word fits in."""
        return np.dtype(np.uint16 if self.outputs <= 2**16 else np.int32)

    def bytes_for(self, tokens: int, rows: int) -> int:
        """About how many bytes ``rows`` rows of ``tokens`` tokens in all take."""
        number, positions = (2 if self.dtype == "float16" else 4), tokens if self.per_token else rows
        if self.top_k is None:
            return rows * _KEY_BYTES + positions * self.outputs * number
        id_bytes = 2 if self.id_dtype == np.uint16 else 4
        return rows * _KEY_BYTES + positions * (self.top_k * (number + id_bytes) + len(self.temperatures) * number)


@dataclass(frozen=True)
class Shard:
    """One file of a cache: its name, rows, bytes and hash."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a cache is about and how far it is.

    Attributes:
        key: what the answers depend on, as short texts by name: a hash of the teacher's weights, of the rows, and what else
            whoever wrote it named.
        layout: of the rows.
        shards: the files that are whole, in order.
    """

    key: Mapping[str, str]
    layout: Layout
    shards: tuple[Shard, ...] = ()

    @property
    def rows(self) -> int:
        """How many are written."""
        return sum(shard.rows for shard in self.shards)

    @property
    def is_complete(self) -> bool:
        """Whether all rows are written."""
        return self.rows == self.layout.rows

    def with_shard(self, shard: Shard) -> "Manifest":
        """The same with one file more."""
        return dataclasses.replace(self, shards=(*self.shards, shard))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a cache, or None where the folder holds none.

    Raises:
        IntegrityError: it is not one of this version, or was changed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        layout: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content["layout"].items()}
        manifest = Manifest(content["key"], Layout(**layout), tuple(Shard(**shard) for shard in content["shards"]))
        if text == _render(manifest):
            return manifest
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise IntegrityError(f"{folder.name}/{MANIFEST}: damaged, or not of this version. Delete the folder and write it again.")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Whole or not at all."""
    write_text(folder / MANIFEST, _render(manifest))


def _render(manifest: Manifest) -> str:
    """One text for one content, closed by its own sha256, so that a single changed bit shows."""
    content = {"schema_version": 1, **dataclasses.asdict(manifest)}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "digest": digest}, indent=1, sort_keys=True) + "\n"


def first_fault(folder: Path, manifest: Manifest) -> str | None:
    """What is wrong with the files of a cache, ``rows-00002.arrow: missing``, or None. Reads every byte."""
    for shard in manifest.shards:
        path = folder / shard.file
        if not path.is_file():
            return f"{shard.file}: missing"
        if path.stat().st_size != shard.bytes:
            return f"{shard.file}: {path.stat().st_size} bytes instead of {shard.bytes}"
        if sha256(path) != shard.sha256:
            return f"{shard.file}: sha256 differs"
    return None


def refuse_another(folder: Path, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """An error that names what of ``wanted`` differs from what a cache was written for."""
    if differing := [name for name, value in wanted.items() if found.get(name) != value]:
        shown = ", ".join(f"{name} ({_short(found.get(name))} -> {_short(wanted[name])})" for name in differing[:4])
        raise IntegrityError(
            f"cache {without_home(folder.name)!r}: written for another {shown}.\n"
            "Name another folder, or delete this one to write it again."
        )


def _short(value: str | None) -> str:
    return "none" if value is None else value if len(value) <= 20 else f"{value[:12]}..."


def check_room(folder: Path, needed: int) -> None:
    """Raise ResourceError where the disk has less than ``needed`` bytes free."""
    disk = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(disk).free
    if needed > free:
        raise ResourceError(
            f"cache {folder.name!r}: needs {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB free.\n"
            "Free some space, or use dtype: float16, a smaller top_k, or another folder."
        )


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The folder, made where it is missing, for this process alone.

    Raises:
        RecipeError: it holds files and no manifest. ResourceError: another process writes here, or nobody can.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise ResourceError(f"cache {folder.name!r} is a file; name a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise ResourceError(f"cache {folder.name!r}: another process writes here; wait for it, or name another.") from None
    except OSError as error:
        raise ResourceError(f"cache {folder.name!r} cannot be written: {error.strerror}; name another folder.") from None
    try:
        if not (folder / MANIFEST).is_file() and (names := sorted(p.name for p in folder.iterdir() if p.name[0] != ".")):
            raise RecipeError(f"cache {folder.name!r} holds other files ({', '.join(names[:3])}); name a new or empty folder.")
        yield
    finally:
        (folder / _LOCK).unlink(missing_ok=True)
        lock.release()


def write_shard(folder: Path, index: int, columns: Mapping[str, Sequence[Any]]) -> Shard:
    """Write one file, on the disk and under its name only when it is whole.

    Args:
        folder: of the cache.
        index: of the file, from 0.
        columns: ``row_key`` with the key of each row as bytes, and arrays of numbers, one a row, flattened.

    Raises:
        ResourceError: the disk is full or fails.
    """
    path = folder / f"rows-{index:05d}.arrow"
    partial = path.with_name(f".{path.name}.partial")
    arrays = {
        name: pa.array(rows, pa.binary()) if name == "row_key" else _listed([np.ravel(row) for row in rows])
        for name, rows in columns.items()
    }
    table = pa.table(arrays)
    try:
        with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
        share(partial)
        sync(partial)
        shard = Shard(path.name, len(table), partial.stat().st_size, sha256(partial))
        partial.replace(path)
        sync(folder)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ResourceError(
            f"cache {folder.name!r}: {path.name} could not be written: {error.strerror or error}.\n"
            "What is there stays; run the same command again to go on."
        ) from None
    return shard


def _listed(rows: Sequence[np.ndarray]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows)))


def read_shard(folder: Path, shard: Shard) -> dict[str, Any]:
    """The columns of a file: ``row_key`` as a list of bytes, each other as a pair of flat values, which stay on the disk until
    they are read, and offsets."""
    table = pa.ipc.open_stream(pa.memory_map(str(folder / shard.file))).read_all()
    columns: dict[str, Any] = {"row_key": table["row_key"].to_pylist()}
    for name in table.column_names:
        if name != "row_key":
            (chunk,) = table[name].chunks
            columns[name] = chunk.values.to_numpy(zero_copy_only=True), chunk.offsets.to_numpy()
    return columns
