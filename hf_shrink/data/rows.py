"""What every source delivers, and the columns that a recipe takes from it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset

from hf_shrink.data.config import DataConfig
from hf_shrink.errors import MismatchError
from hf_shrink.lines import few
from hf_shrink.tables import nearest


@dataclass(frozen=True)
class Raw:
    """A data set as it came.

    Attributes:
        splits: by the names they have there.
        source: what it was, for the report; never an absolute path.
    """

    splits: dict[str, Dataset]
    source: dict[str, str]


@dataclass(frozen=True)
class Columns:
    """What a task reads of a source: our name of a column -> its name there.

    Attributes:
        texts: columns of strings.
        others: labels, lists and whatever else the task looks at itself.
    """

    texts: Mapping[str, str]
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def all(self) -> dict[str, str]:
        """Both, texts first."""
        return {**self.texts, **self.others}


@dataclass(frozen=True)
class Rows:
    """The wanted columns of one split, all its rows.

    Attributes:
        where: ``split 'train' of reviews.csv``, for errors.
        texts: by our names; strings without nulls.
        others: by our names; of any type, without nulls.
        names: of classes, by our name of the column, where the source has them.
    """

    where: str
    texts: Mapping[str, pa.ChunkedArray]
    others: Mapping[str, pa.ChunkedArray]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def label(self) -> pa.ChunkedArray:
        """The column ``label``, of tasks that have one."""
        return self.others["label"]

    def __len__(self) -> int:
        return len(next(iter({**self.others, **self.texts}.values())))


def check_columns(present: Iterable[str], wanted: Iterable[str], where: str) -> None:
    """An error that names a wanted column which is not there, or there twice, and lists those that are."""
    names = list(present)
    for column in wanted:
        if names.count(column) != 1:
            fault = f"{names.count(column)} columns named" if column in names else "no column"
            listed = few(map(repr, names), 20)
            raise MismatchError(f"{where}: {fault} {column!r}.{nearest(column, names)} Columns present: {listed}.")


def rows_of(raw: Raw, split: str, config: DataConfig, wanted: Columns) -> Rows:
    """The wanted columns of one split, checked.

    Raises:
        MismatchError: the split or a column is missing, a text is not text, or a value is null; names the row, counted from 0.
    """
    name = shown(config.dataset)
    if split not in raw.splits:
        raise MismatchError(
            f"{name}: no split {split!r}.{nearest(split, raw.splits)} Splits present: {', '.join(raw.splits)}.\n"
            "Name one of them; validation_split: null cuts a tenth off training, test_split: null reports on validation."
        )
    data, where, columns = raw.splits[split], f"split {split!r} of {name}", wanted.all
    check_columns(data.column_names, columns.values(), where)
    table = data.select_columns(list(dict.fromkeys(columns.values()))).with_format("arrow")[:]
    arrays = {ours: table.column(theirs) for ours, theirs in columns.items()}
    for ours, theirs in columns.items():
        if ours in wanted.texts and len(data) and not _is_text(arrays[ours].type):
            raise MismatchError(f"{where}: column {theirs!r} holds {arrays[ours].type}, not text. Name a column with text.")
        if arrays[ours].null_count:
            row = pc.index(pc.is_null(arrays[ours]), True).as_py()
            raise MismatchError(f"{where}: row {row}: {theirs} is null. Fill it or remove the row.")
    names = {ours: found for ours, theirs in columns.items() if (found := _class_names(data.features[theirs])) is not None}
    texts = {ours: arrays.pop(ours) for ours in wanted.texts}
    return Rows(where, texts, arrays, names)


def shown(reference: str) -> str:
    """What errors and reports call a data set: a Hub id or ``package:NAME`` whole, a path by its last part."""
    return reference if reference.startswith("package:") or not Path(reference).exists() else Path(reference).resolve().name


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """Those of a column of classes, or of lists of classes."""
    inner = getattr(feature, "feature", feature)
    return tuple(inner.names) if isinstance(inner, ClassLabel) else None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))
