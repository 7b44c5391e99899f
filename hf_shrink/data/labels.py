"""From a label column to class indices, and the names of the classes."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_shrink.data.rows import Rows
from hf_shrink.errors import MismatchError
from hf_shrink.lines import few

LABEL = "label"


def encode(train: Rows, others: list[Rows]) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Names of the classes, and for ``train`` and each of ``others`` the class index of every row, int64.

    The names are the source's own, else the sorted distinct names of the training rows, else ``LABEL_0`` ... for labels that
    are plain numbers; those count classes without a gap, so that a stray number is found and not made a class.

    Raises:
        MismatchError: a label that is no class (names the row, counted from 0), or fewer than two classes.
    """
    splits = [train, *others]
    for rows in splits:
        if len(rows) and not (_is_whole(rows) or pa.types.is_boolean(rows.label.type) or _is_text(rows)):
            raise MismatchError(f"{rows.where}: labels hold {rows.label.type}; expected whole numbers from 0, or names.")
    if all(_is_whole(rows) for rows in splits if len(rows)):
        names = train.names.get(LABEL) or _numbered(train)
        indices = [rows.label.to_numpy().astype(np.int64) for rows in splits]
        for rows, labels in zip(splits, indices, strict=True):
            _check_range(rows, labels, len(names))
    else:
        as_text = [rows.label.cast(pa.string()) for rows in splits]
        names = train.names.get(LABEL) or tuple(sorted(pc.unique(as_text[0]).to_pylist()))
        indices = [_look_up(rows, labels, names) for rows, labels in zip(splits, as_text, strict=True)]
    if len(names) < 2:
        raise MismatchError(f"{train.where}: {len(train)} rows, all of class {names[0]!r}; at least 2 classes are needed.")
    return names, indices


def _is_whole(rows: Rows) -> bool:
    return bool(pa.types.is_integer(rows.label.type))


def _is_text(rows: Rows) -> bool:
    return bool(pa.types.is_string(rows.label.type) or pa.types.is_large_string(rows.label.type))


def _numbered(train: Rows) -> tuple[str, ...]:
    """As many names as there are numbers from 0 on without a gap."""
    present = set(pc.unique(train.label).to_pylist())
    count = next(i for i in range(len(present) + 1) if i not in present)
    if count == 0:
        raise MismatchError(f"{train.where}: no row has label 0, the lowest is {min(present)}; count classes from 0.")
    return tuple(f"LABEL_{i}" for i in range(count))


def _check_range(rows: Rows, labels: np.ndarray, classes: int) -> None:
    bad = (labels < 0) | (labels >= classes)
    if bad.any():
        row = int(bad.argmax())
        raise MismatchError(
            f"{rows.where}: row {row}: label {labels[row]} not in 0..{classes - 1} ({int(bad.sum())} such rows).\n"
            "Correct or remove them, or use a split whose labels are public."
        )


def _look_up(rows: Rows, labels: pa.ChunkedArray, names: tuple[str, ...]) -> np.ndarray:
    found = pc.index_in(labels, value_set=pa.array(names, pa.string()))
    if found.null_count:
        row = pc.index(pc.is_null(found), True).as_py()
        raise MismatchError(
            f"{rows.where}: row {row}: label {labels[row].as_py()!r} is none of the {len(names)} classes: "
            f"{few(map(repr, names), 10)}."
        )
    result: np.ndarray = found.to_numpy().astype(np.int64)
    return result
