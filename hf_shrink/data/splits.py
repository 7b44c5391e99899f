"""From the ``data`` section to the three splits of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_shrink.data.config import DataConfig
from hf_shrink.data.fingerprints import fingerprint
from hf_shrink.data.format import Columned, Format
from hf_shrink.data.hub import read_hub
from hf_shrink.data.local import READERS, read_local
from hf_shrink.data.packages import PREFIX, read_package
from hf_shrink.data.rows import Columns, Raw, rows_of
from hf_shrink.data.tasks import FORMATS
from hf_shrink.errors import MismatchError, RecipeError
from hf_shrink.tables import pick


@dataclass(frozen=True)
class Splits:
    """Rows of three splits, in the columns of their task.

    Attributes:
        train, validation, test: for classification ``text``, for pairs ``text_pair``, and ``label``, an index into
            ``label_names``; other tasks as their file in ``data`` says.
        label_names: names of the classes; empty for tasks without.
        source: data set, revision, SHA-256 of local files and the fingerprint of each split, for report and resume.
        format: how rows of this task become tokens and batches.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    label_names: tuple[str, ...]
    source: dict[str, str]
    format: Format


def load_splits(config: DataConfig, task: str = "text-classification", *, download: bool = True) -> Splits:
    """Read, check and draw the three splits; the same for the same config and content.

    Every row is checked before any is drawn. What ``validation_split: null`` cuts off never is in training.

    Args:
        task: a name of ``hf_shrink.tasks.TASKS``: which columns are read and what they must hold.
        download: False takes a data set of the Hub from the cache or not at all.

    Raises:
        RecipeError: the section names what does not exist.
        MismatchError: the data lack a split or column, hold a null or a label that is no class, or leave a split empty.
        ResourceError: data or a package are not on this machine and cannot be fetched.
    """
    form = pick(FORMATS, task, "task")(config)
    wanted = form.columns()
    raw = _read(config, wanted, download)
    asked = {"train": config.train_split, "validation": config.validation_split, "test": config.test_split}
    named = {role: split for role, split in asked.items() if split is not None}
    rows = {role: rows_of(raw, split, config, wanted) for role, split in named.items()}
    for role, found in rows.items():
        if not len(found):
            raise MismatchError(f"{role}: 0 rows in {found.where}; nothing was filtered. Name a split that has rows.")
    roles = ["train", *(role for role in rows if role != "train")]
    names, columns = form.encode([rows[role] for role in roles])
    encoded = dict(zip(roles, columns, strict=True))
    chosen = _choose({role: len(found) for role, found in rows.items()}, config, rows["train"].where)
    made = {role: _dataset(encoded.get(role, encoded["train"]), chosen[role]) for role in chosen}
    made.setdefault("test", made["validation"])
    prints = {f"fingerprint of {role}": fingerprint(data) for role, data in made.items()}
    return Splits(made["train"], made["validation"], made["test"], names, raw.source | prints, form)


def _read(config: DataConfig, wanted: Columns, download: bool) -> Raw:
    if config.dataset.startswith(PREFIX):
        return read_package(config)
    path = Path(config.dataset)
    try:
        is_here = path.is_file() or path.is_dir()
    except OSError:  # such as a name that no file system takes
        is_here = False
    if is_here:
        return read_local(path, config, wanted)
    if path.suffix in READERS:
        raise RecipeError(f"data.dataset: no file {path.name[:80]!r} here; check the path, relative to the current folder.")
    return read_hub(config, download=download)


def _choose(counts: Mapping[str, int], config: DataConfig, where: str) -> dict[str, np.ndarray]:
    """Row numbers of each split: a tenth cut off training where there is no validation, then the samples drawn."""
    chosen = {role: np.arange(count) for role, count in counts.items()}
    if "validation" not in chosen:
        if counts["train"] < 2:
            raise MismatchError(f"train: 0 rows after a tenth was cut off for validation (from {counts['train']} in {where}).")
        shuffled = np.random.default_rng(config.seed).permutation(counts["train"])
        cut = max(counts["train"] // 10, 1)
        chosen |= {"validation": np.sort(shuffled[:cut]), "train": np.sort(shuffled[cut:])}
    samples = {"train": config.train_samples, "validation": config.validation_samples, "test": config.test_samples}
    return {role: _draw(rows, samples[role], config.seed) for role, rows in chosen.items()}


def _draw(rows: np.ndarray, samples: int | None, seed: int) -> np.ndarray:
    """At most ``samples`` of ``rows``, in their order; fewer samples are a part of more."""
    if samples is None or samples >= len(rows):
        return rows
    return np.sort(rows[np.random.default_rng(seed).permutation(len(rows))[:samples]])


def _dataset(columns: Columned, chosen: np.ndarray) -> Dataset:
    return Dataset.from_dict({name: column.take(pa.array(chosen)).to_pylist() for name, column in columns.items()})
