"""What a model is called: a Hub id, a local folder, or ``package:NAME/PATH`` for one inside an installed package."""

import importlib.util
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from hf_shrink.adapters import CONFIG, FOLDER, holds_adapter
from hf_shrink.errors import MismatchError, RecipeError, ResourceError, SecurityError
from hf_shrink.lines import without_home
from hf_shrink.models.explained import explained

_PACKAGE = "package:"
_READ = ["config.json", "*.safetensors", f"{FOLDER}/{CONFIG}"]
_UNREAD = ["*/*/*", "[!a]*/*", "a[!d]*/*"]  # of folders, only the one of adapters
_LOCAL = "local: "
"""How a published recipe writes a path of its author's."""


def resolve(reference: str) -> str:
    """The folder of a ``package:NAME/PATH`` reference, absolute; any other reference comes back as it is.

    The package is found without importing it: naming a model never runs a package's code.

    Raises:
        RecipeError: there is no name after ``package:``.
        ResourceError: the package is not installed, or has no such folder.
        SecurityError: the path leaves the package, by ``..``, as an absolute path or through a link.
    """
    if reference.startswith(_LOCAL):
        raise RecipeError(f"{reference!r} lay on the machine of the recipe's author; say where yours is, e.g. --set model=...")
    if not reference.startswith(_PACKAGE):
        return reference
    name, _, inside = reference.removeprefix(_PACKAGE).partition("/")
    if not name.isidentifier():
        raise RecipeError(f"{reference!r}: {name!r} is no package name. Write package:NAME/PATH, e.g. package:my_models/bert.")
    root = _package_folder(name, reference)
    path = Path(inside)
    if path.is_absolute() or ".." in path.parts or not (root / path).resolve().is_relative_to(root.resolve()):
        raise SecurityError(f"{reference!r} leaves the package {name}. Name a folder inside it.")
    if not (root / path).is_dir():
        raise ResourceError(f"{reference!r}: the package {name} is installed but has no folder {inside!r}.")
    return str((root / path).resolve())


def is_local(reference: str) -> bool:
    """True where ``reference`` is a folder on this machine or can only be meant as one."""
    return Path(reference).is_dir() or reference.startswith(("/", "./", "../", "~")) or reference.count("/") > 1


def check_source(reference: str, revision: str | None) -> str:
    """``resolve(reference)``, after a look at what can be seen without loading.

    Raises:
        RecipeError: a revision of something that has none.
        ResourceError: a path with no folder.
    """
    source = resolve(reference)
    if not is_local(source):
        return source
    if revision is not None:
        raise RecipeError(f"{shown(reference)}: revision {revision!r} would be ignored, this is a folder; remove it.")
    if not Path(source).is_dir():
        raise ResourceError(f"{shown(reference)}: no such folder. A model is a folder, a Hub id or package:NAME/PATH.")
    return source


def local_folder(reference: str, revision: str | None = None, *, download: bool = False) -> Path:
    """Where a model lies on this machine: its folder, or its snapshot in the cache.

    Args:
        reference: what the model is called.
        revision: commit, tag or branch of a Hub id.
        download: fetch config, safetensors and adapter of a Hub id first, unless the Hub is off; nothing that can run code.

    Raises:
        ResourceError: it is not here, and cannot be had.
    """
    source = check_source(reference, revision)
    if is_local(source):
        return Path(source)
    if download:
        with explained(shown(reference), revision):
            return Path(snapshot_download(source, revision=revision, allow_patterns=_READ, ignore_patterns=_UNREAD))
    try:
        return Path(snapshot_download(source, revision=revision, local_files_only=True))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError):
        raise ResourceError(f"{shown(reference)}: not on this machine; run the command online once.") from None


def refuse_adapter(reference: str) -> None:
    """Refuse a folder whose model is meant with the adapter beside it: loading takes the model alone.

    Raises:
        MismatchError: there is one.
    """
    if holds_adapter(Path(resolve(reference))):
        raise MismatchError(
            f"{shown(reference)}: the adapter in {FOLDER}/{CONFIG} would be left out here.\n"
            "Name the model of an earlier stage, or run its recipe with recovery.keep: merge."
        )


def shown(reference: str) -> str:
    """The reference in quotes, with the home folder written as ``~``: errors end up in public logs."""
    return repr(without_home(reference))


def _package_folder(name: str, reference: str) -> Path:
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module without a spec, such as __main__
        spec = None
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        raise ResourceError(f"{reference!r}: the package {name} is not installed. Try: pip install {name.replace('_', '-')}")
    return Path(places[0])
