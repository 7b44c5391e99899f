"""What must not leave the machine: paths say who and where, so only their last name is published."""

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from hf_shrink.errors import IntegrityError
from hf_shrink.yaml_core import write
from hf_shrink.yaml_source import parse

DESTINATION = ("push_to", "public", "create_pr", "revision", "tag")
"""Keys of ``publishing`` that say where a run publishes: whoever runs the recipe again has another place."""

_PATH = re.compile(
    r"(?:file://)?(?:~[\w.-]*(?:/[^\s'\"`,;:)\]}]+)+|/(?:[^\s'\"`,;:)\]}/]+/)+[^\s'\"`,;:)\]}]*|[A-Za-z]:\\[^\s'\"`,;)\]}]+)"
)
_STARTS = ("/", "~", "./", "../", "file:", "\\")


def published(value: Any) -> Any:
    """Plain data with every path replaced by ``local: NAME``; package references and Hub ids stay."""
    if isinstance(value, dict):
        return {
            key: local(item) if key == "output_dir" and isinstance(item, str) else published(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [published(item) for item in value]
    return _text(value) if isinstance(value, str) else value


def local(path: str) -> str:
    """``local: NAME`` for a path."""
    return f"local: {last_name(path)}"


def last_name(path: str) -> str:
    """The last component, whichever system wrote the path."""
    pure = PureWindowsPath(path) if "\\" in path else PurePosixPath(path)
    return pure.name if pure.name not in {"", "..", "."} else "folder"


def _text(text: str) -> str:
    if text.startswith(_STARTS) or re.match(r"[A-Za-z]:[\\/]", text):
        return local(text.removeprefix("file://"))
    return _PATH.sub(_found, text)


def _found(match: re.Match[str]) -> str:
    before = match.string[match.start() - 1 : match.start()]
    if before and (before.isalnum() or before in ":/._-"):
        return match[0]  # inside a URL, a module name or a fraction such as samples/s
    return last_name(match[0].rstrip("/"))


def published_file(path: Path, digests: Mapping[str, str]) -> bytes:
    """A recipe or a report as it is published: paths cut to their last name, and not where it is published.

    Args:
        path: ``.json`` for a report, ``.yaml`` for a recipe.
        digests: sha256 by name of the files beside it. Where the report notes one, it has to be that; then all are noted.

    Raises:
        IntegrityError: it cannot be read, or a file changed since the report was written about it.
    """
    where, is_report = f"{path.parent.name}/{path.name}", path.suffix == ".json"
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        data = json.loads(text) if is_report else parse(text, name=path.name).data
        recipe = data["recipe"] if is_report and "recipe" in data else data
        for key in DESTINATION:
            (recipe.get("publishing") or {}).pop(key, None)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise IntegrityError(f"{where}: cannot be read; run the report again, or remove the file.") from None
    if not is_report:
        folder = last_name(str(data.get("output_dir") or "runs/again"))
        return write(published(data) | {"output_dir": folder}).encode()
    for name, digest in (data.get("files") or {}).items():
        if digests.get(name, digest) != digest:
            raise IntegrityError(
                f"{path.parent.name}/{name}: changed since the report was written, whose numbers are about the earlier file.\n"
                "Run the report again, or remove hf_shrink_report.json."
            )
    return (
        json.dumps(published(data) | {"files": dict(sorted(digests.items()))}, indent=1, ensure_ascii=False) + "\n"
    ).encode()
