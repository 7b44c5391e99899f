"""What must not leave the machine: paths say who and where, so only their last name is published."""

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

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
