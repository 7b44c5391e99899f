"""Data sets on the Hub, through the ``datasets`` library. It runs no code of a data set: scripts are refused there."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from datasets import DatasetDict, disable_progress_bars, enable_progress_bars, load_dataset

from hf_shrink.data.config import DataConfig
from hf_shrink.data.rows import Raw
from hf_shrink.errors import MismatchError, RecipeError, ResourceError, SecurityError, ShrinkError
from hf_shrink.lines import first_line

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_COMMIT = re.compile(r"@([0-9a-f]{40})/")


def read_hub(config: DataConfig, *, download: bool) -> Raw:
    """The splits of a data set on the Hub, from the cache where it is there; a token comes from the environment.

    Args:
        download: False reads the cache only.

    Raises:
        RecipeError: not the name of a data set, or an unknown subset.
        ResourceError: not cached and not to be had; names what is missing.
        SecurityError: the data set is a script.
    """
    # A word such as "csv" would make the library read whatever lies in the current folder.
    if (
        not _ID.fullmatch(config.dataset)
        or len(config.dataset) > 96
        or config.dataset in datasets.packaged_modules._PACKAGED_DATASETS_MODULES
    ):
        raise RecipeError(
            f"data.dataset: {config.dataset[:80]!r} is neither a file or folder here nor the id of a data set on the Hub.\n"
            "Write a path that exists, an id such as nyu-mll/glue, or package:NAME."
        )
    try:
        with _offline(not download), quiet_bars():
            found = load_dataset(config.dataset, config.subset, revision=config.revision)
    except Exception as error:  # the library lets errors of several others through: httpx, pyarrow, fsspec
        raise _explained(error, config, download) from None
    assert isinstance(found, DatasetDict), "no split was asked for, so all come"
    return Raw(dict(found), _source(config, found))


def _explained(error: Exception, config: DataConfig, download: bool) -> ShrinkError:
    at = f" at revision {config.revision}" if config.revision else ""
    name = f"data set {config.dataset}{f' ({config.subset})' if config.subset else ''}{at}"
    line = first_line(error)
    if isinstance(error, OSError) and (not download or datasets.config.HF_HUB_OFFLINE):
        return ResourceError(f"{name} is not in the cache, and nothing is downloaded here.\nFetch it once while online.")
    if isinstance(error, RuntimeError) and "scripts are no longer supported" in line:
        return SecurityError(f"{name} is a script, which is never run. Use a data set of plain files.")
    if isinstance(error, ValueError):  # an unknown subset, or one that has to be chosen: the message lists them
        return RecipeError(f"{name}: {line}")
    if isinstance(error, datasets.exceptions.DatasetGenerationError):
        return MismatchError(f"{name}: its files cannot be read: {line}")
    return ResourceError(f"{name} cannot be loaded: {line}\nCheck id and network; a private one needs `hf auth login`.")


def _source(config: DataConfig, found: DatasetDict) -> dict[str, str]:
    """Id, subset and the commit that was read, as far as the library tells it."""
    files = [url for split in found.values() for url in (split.info.download_checksums or {})]
    commits = {match[1] for url in files if (match := _COMMIT.search(url))}
    revision = commits.pop() if len(commits) == 1 else config.revision
    parts = {"dataset": config.dataset, "subset": config.subset, "revision": revision}
    return {key: value for key, value in parts.items() if value is not None}


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """The library's offline switch, for the length of one call; it has no argument for it."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


@contextmanager
def quiet_bars() -> Iterator[None]:
    """No bars of ``datasets`` where stderr is no terminal; they come back after."""
    if sys.stderr.isatty() or datasets.utils.are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
