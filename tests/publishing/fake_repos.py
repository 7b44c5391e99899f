"""What the fake Hub keeps: repositories with commits, branches, tags and pull requests, and the large files beside them."""

import hashlib
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def git_oid(content: bytes) -> str:
    """What git calls a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class File:
    """One file of a commit: its bytes, or the sha256 of a large one."""

    content: bytes = b""
    lfs: str | None = None
    size: int = 0

    @property
    def oid(self) -> str:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.lfs}\nsize {self.size}\n"
        return git_oid(pointer.encode() if self.lfs else self.content)


@dataclass
class Repo:
    """One repository; ``moves`` says each time a branch came to point elsewhere."""

    name: str
    private: bool
    owner: str
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    pulls: list[dict[str, Any]] = field(default_factory=list)
    moves: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.refs:
            self.commit("main", {".gitattributes": File(b"*.safetensors filter=lfs\n", size=25)}, "initial commit")
            self.moves.clear()

    def commit(self, ref: str, files: dict[str, File], title: str) -> str:
        """The new commit that ``ref`` points to."""
        seed = f"{self.name}{ref}{len(self.commits)}{sorted((name, file.oid) for name, file in files.items())}"
        sha = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[sha], self.titles[sha], self.refs[ref] = dict(files), title, sha
        self.moves.append(ref)
        return sha

    def find(self, revision: str) -> str | None:
        """The commit of a branch, a tag, ``refs/pr/N`` or a hash."""
        return self.refs.get(revision) or self.tags.get(revision) or (revision if revision in self.commits else None)

    def head(self, ref: str = "main") -> dict[str, File]:
        """The files of a branch."""
        return self.commits[self.refs[ref]]


@dataclass
class Store:
    """Large files by sha256: those that came by LFS in memory, those that came by Xet in a folder of the real uploader's."""

    cas: Path
    lfs: dict[str, bytes] = field(default_factory=dict)

    def has(self, sha256: str) -> bool:
        """Whether its bytes have arrived."""
        return sha256 in self.lfs or self.xet_hash(sha256) is not None

    def xet_hash(self, sha256: str) -> str | None:
        """The name that the uploader's index gives the file; None where it did not come by Xet."""
        for path in self.cas.rglob("*.mdb"):
            if (found := _indexed(path.read_bytes()).get(sha256)) is not None:
                return found
        return None


def _hex(raw: bytes) -> str:
    return "".join(f"{part:016x}" for part in struct.unpack("<4Q", raw))


def _indexed(shard: bytes) -> dict[str, str]:
    """sha256 -> Xet hash, from a shard: records of 48 bytes after a header of as many, up to one whose name is all ones."""
    found, at = {}, 48
    while at + 48 <= len(shard) and shard[at : at + 32] != b"\xff" * 32:
        name, (flags, entries) = _hex(shard[at : at + 32]), struct.unpack("<II", shard[at + 32 : at + 40])
        at += 48 * (1 + entries * (2 if flags >> 31 else 1))
        if flags >> 30 & 1:
            found[_hex(shard[at : at + 32])] = name
            at += 48
    return found
