"""From a column of lists of labels to class indices, and the names of the classes."""

from collections.abc import Sequence
from typing import Any

from hf_shrink.data.rows import Rows
from hf_shrink.errors import MismatchError
from hf_shrink.lines import few


def encode_lists(splits: Sequence[Rows], column: str) -> tuple[tuple[str, ...], list[list[list[int]]]]:
    """Names of the classes, and for each split the class indices of every row.

    The names are the source's own, else the sorted distinct names of the training rows, else ``LABEL_0`` ... for whole numbers
    from 0 without a gap.

    Args:
        splits: the training split first.
        column: our name of the column: lists of names, or of whole numbers; a list may be empty.

    Raises:
        MismatchError: a row is no such list, a label is no class (names the row, counted from 0), or fewer than two classes.
    """
    rows = [_lists(split, column) for split in splits]
    names = splits[0].names.get(column) or _names(splits[0].where, rows[0])
    return names, [_indices(split.where, own, names) for split, own in zip(splits, rows, strict=True)]


def _lists(split: Rows, column: str) -> list[list[Any]]:
    found: list[Any] = split.others[column].to_pylist()
    for i, labels in enumerate(found):
        if not isinstance(labels, list) or not all(isinstance(v, str | int) and not isinstance(v, bool) for v in labels):
            raise MismatchError(
                f"{split.where}: row {i}: {column} hold {repr(labels)[:60]}; give a list of names, or of numbers from 0."
            )
    return found


def _names(where: str, rows: list[list[Any]]) -> tuple[str, ...]:
    present = {label for labels in rows for label in labels}
    if all(isinstance(label, int) for label in present):
        count = next(i for i in range(len(present) + 1) if i not in present)
        names = tuple(f"LABEL_{i}" for i in range(count))
    else:
        names = tuple(sorted(map(str, present)))
    if len(names) < 2:
        raise MismatchError(f"{where}: labels are {few(map(repr, sorted(present)))}; at least 2 classes are needed, from 0 on.")
    return names


def _indices(where: str, rows: list[list[Any]], names: tuple[str, ...]) -> list[list[int]]:
    known: dict[Any, int] = {name: i for i, name in enumerate(names)} | {i: i for i in range(len(names))}
    for i, labels in enumerate(rows):
        for label in labels:
            if label not in known:
                listed = few(map(repr, names), 10)
                raise MismatchError(f"{where}: row {i}: label {label!r} is none of the {len(names)} classes: {listed}.")
    return [[known[label] for label in labels] for labels in rows]
