"""Which files of a folder are published: those on a list of names, and nothing else that lies there."""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from hf_shrink.errors import IntegrityError, MismatchError, ResourceError
from hf_shrink.lines import few
from hf_shrink.publishing.private import published_file

CARD = "README.md"
REPORT = "hf_shrink_report.json"
_WEIGHTS = re.compile(r"(model|adapter_model)(-\d{5}-of-\d{5})?\.safetensors")
_INDEX = re.compile(r"(model|adapter_model)\.safetensors\.index\.json")
_ADAPTER = re.compile(r"adapter/(adapter_model\.safetensors|adapter_config\.json)")
_ONNX = re.compile(r"onnx/[A-Za-z0-9][\w-]*\.(onnx|onnx_data|onnx\.data|json)")
_TEMPLATE = re.compile(r"additional_chat_templates/[A-Za-z0-9][\w-]*\.jinja")
_CONFIGS = {"config.json", "adapter_config.json"}
_NAMES = _CONFIGS | {
    CARD,
    REPORT,
    "hf_shrink_recipe.yaml",
    "modeling_hf_shrink.py",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "chat_template.jinja",
}
_THEIRS = {CARD, "LICENSE", "LICENSE.md", "LICENSE.txt"}
"""Files that people write into a repository by hand: they are replaced, never removed."""


@dataclass(frozen=True)
class Upload:
    """One file as it is to be in the repository.

    Attributes:
        name: its path there.
        source: the file, or the bytes where what is published is not what lies in the folder.
        size: in bytes.
        sha256: of its bytes, in hex.
        git_oid: what git calls those bytes, in hex.
    """

    name: str
    source: Path | bytes
    size: int
    sha256: str
    git_oid: str

    def read(self) -> bytes:
        """The whole of it; for small files."""
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()

    @property
    def is_weights(self) -> bool:
        """Numbers rather than text."""
        return is_weights(self.name)


@dataclass(frozen=True)
class Selection:
    """The files to publish, sorted, and the names in the folder that stay at home."""

    uploads: tuple[Upload, ...]
    left_out: tuple[str, ...]

    @property
    def digest(self) -> str:
        """One sha256 over names and contents: equal for equal uploads."""
        lines = "".join(f"{each.sha256} {each.name}\n" for each in self.uploads)
        return hashlib.sha256(lines.encode()).hexdigest()


def is_published(name: str) -> bool:
    """Whether a file of this path may be published."""
    return name in _NAMES or any(pattern.fullmatch(name) for pattern in (_WEIGHTS, _INDEX, _ADAPTER, _ONNX, _TEMPLATE))


def is_weights(name: str) -> bool:
    """Whether a file of this path holds weights."""
    weights = _WEIGHTS.fullmatch(name) is not None or name == "adapter/adapter_model.safetensors"
    return weights or (name.startswith("onnx/") and not name.endswith(".json"))


def is_stale(name: str, kept: set[str]) -> bool:
    """Whether a file of the repository belongs to an earlier model there: on the list of names, and not in this upload."""
    return is_published(name) and name not in kept and name not in _THEIRS


def select(folder: Path) -> Selection:
    """The files of a finished model, hashed. Links and hidden names are left out, whatever they are called.

    Paths in recipe and report are cut to their last name, and the report notes the sha256 of every other file.

    Raises:
        ResourceError: no such folder, or a file that cannot be read.
        MismatchError: a model that is not whole: no config, no weights, no card.
        IntegrityError: a shard that its index names is not there, or a file is not what the report was written about.
    """
    if not folder.is_dir():
        raise ResourceError(f"{folder.name}: no such folder; name the folder of a finished model.")
    try:
        found = sorted(name for name in _names(folder) if is_published(name))
        _check_whole(folder, found)
        plain = [name for name in found if name not in (REPORT, "hf_shrink_recipe.yaml")]
        uploads = {name: upload_of(name, folder / name) for name in plain}
        digests = {name: uploads[name].sha256 for name in plain if name != CARD}
        for name in set(found) - set(plain):
            uploads[name] = upload_of(name, published_file(folder / name, digests))
    except OSError as error:
        raise ResourceError(f"{folder.name}: cannot be read: {error.strerror}.") from None
    parts = {name.split("/")[0] for name in found}
    left_out = [path.name for path in folder.iterdir() if path.name not in parts]
    within = (path for part in parts - set(found) for path in (folder / part).iterdir())
    left_out += [name for path in within if (name := path.relative_to(folder).as_posix()) not in uploads]
    return Selection(tuple(uploads[name] for name in found), tuple(sorted(left_out)))


def _names(folder: Path) -> list[str]:
    """Paths of regular files at the top and one level below, without what is hidden or a link."""
    found = []
    for entry in os.scandir(folder):
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        if entry.is_file():
            found.append(entry.name)
        elif entry.is_dir():
            below = (inner for inner in os.scandir(entry.path) if inner.is_file(follow_symlinks=False))
            found += [f"{entry.name}/{inner.name}" for inner in below if not inner.name.startswith(".")]
    return found


def _check_whole(folder: Path, names: list[str]) -> None:
    wants = {
        "config.json": bool(_CONFIGS & set(names)),
        "weights (*.safetensors or onnx/*.onnx)": any(map(is_weights, names)),
        f"{CARD}, the card": CARD in names,
    }
    if missing := [what for what, there in wants.items() if not there]:
        raise MismatchError(
            f"{folder.name}: no {' and no '.join(missing)} to publish; links do not count.\n"
            "Name the folder of a finished run, or save model, tokenizer and card there first."
        )
    if empty := [name for name in names if is_weights(name) and not (folder / name).stat().st_size]:
        raise IntegrityError(f"{folder.name}/{empty[0]}: is empty.")
    for index in filter(_INDEX.fullmatch, names):
        try:
            shards = set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError):
            raise IntegrityError(f"{folder.name}/{index}: not an index of weights.") from None
        if absent := sorted(str(name) for name in shards if name not in names or not _WEIGHTS.fullmatch(str(name))):
            raise IntegrityError(f"{folder.name}/{index}: names files that are not there: {few(absent, 3)}.")


def upload_of(name: str, source: Path | bytes) -> Upload:
    """One file of a selection; both digests in one pass."""
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    if isinstance(source, bytes):
        pieces = iter([source])
    else:
        file = source.open("rb")
        pieces = iter(lambda: file.read(1 << 20), b"")
    for piece in pieces:
        sha256.update(piece)
        git.update(piece)
    if not isinstance(source, bytes):
        file.close()
    return Upload(name, source, size, sha256.hexdigest(), git.hexdigest())
