"""A folder of somebody's own tasks for lm-eval: read as data, and refused where it names code."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import yaml

from hf_shrink.errors import RecipeError, SecurityError
from hf_shrink.files import files_below, sha256
from hf_shrink.lines import first_line

WHERE = "measurement.lm_eval"
"""The section of a recipe, for messages."""
_MAX_BYTES = 1 << 20


def check_folder(folder: Path) -> None:
    """Refuse a folder in which a file names Python, itself or through what it includes; nothing is constructed to see that.

    Raises:
        SecurityError: it does, or includes or links to a file outside of the folder.
        RecipeError: a file is no YAML, or above 1 MiB.
    """
    for path in _files(folder):
        _check_file(path, folder.resolve())


def digest(folder: Path) -> str:
    """Of all files and their names, as tasks include and read files of any name: twelve hex digits of SHA-256."""
    whole = hashlib.sha256()
    for path in files_below(folder):
        whole.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0{sha256(path)}".encode())
    return whole.hexdigest()[:12]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.yaml") if path.is_file())


def _check_file(path: Path, root: Path, seen: frozenset[Path] = frozenset()) -> None:
    place = path.resolve()
    if not place.is_relative_to(root):
        raise SecurityError(f"{WHERE}.folder: {path.name} includes or links to a file outside of the folder; copy it there.")
    if place in seen:
        raise RecipeError(f"{WHERE}.folder: {path.name} includes itself.")
    if not place.is_file() or place.stat().st_size > _MAX_BYTES:
        raise RecipeError(f"{WHERE}.folder: {path.name} is not there, or above {_MAX_BYTES >> 20} MiB.")
    try:
        top = yaml.compose(place.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{WHERE}.folder: {path.name}: not valid YAML: {first_line(error)}") from None
    for node in _nodes(top):
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python"):
            raise SecurityError(f"{WHERE}.folder: {path.name}: {node.tag} names code, which is never run; use a template.")
    pairs = top.value if isinstance(top, yaml.MappingNode) else []
    for key, value in pairs:
        if key.value == "class":
            raise SecurityError(f"{WHERE}.folder: {path.name}: `class` names code, which is never run; use a template.")
        if key.value == "include":
            for each in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                _check_file(place.parent / str(each.value), root, seen | {place})


def _nodes(top: yaml.Node | None) -> Iterator[yaml.Node]:
    waiting, seen = [top], set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            waiting += [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
