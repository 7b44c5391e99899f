"""Data files on this machine, read into memory: nothing is cached, so a changed file is never mistaken for the old one."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from datasets import Dataset
from datasets.table import InMemoryTable

from hf_shrink.data.config import DataConfig
from hf_shrink.data.rows import Raw, check_columns, columns_of
from hf_shrink.errors import MismatchError, RecipeError, ResourceError
from hf_shrink.files import sha256
from hf_shrink.lines import first_line

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


def read_local(path: Path, config: DataConfig) -> Raw:
    """A file as split ``train``, or a folder with one file a split: ``train.csv``, ``test-00000-of-00002.parquet``.

    Raises:
        RecipeError: nothing there that can be read, or options that only data sets on the Hub have.
        MismatchError: a file is broken, or a column is missing.
        ResourceError: a file may not be read.
    """
    for key in ("subset", "revision"):
        if getattr(config, key) is not None:
            raise RecipeError(f"data.{key}: would be ignored: {path.name} is not on the Hub. Remove it.")
    text_columns = [theirs for ours, theirs in columns_of(config).items() if ours != "label"]
    tables: dict[str, list[pa.Table]] = {}
    for split, file in _files(path):
        tables.setdefault(split, []).append(_read(file, text_columns, config.label_column))
    splits = {split: Dataset(InMemoryTable(_joined(parts, split))) for split, parts in tables.items()}
    source = {"dataset": path.resolve().name} | {f"sha256 of {file.name}": sha256(file) for _, file in _files(path)}
    return Raw(splits, source)


def _files(path: Path) -> list[tuple[str, Path]]:
    """Each data file with the split it belongs to, in the order of names."""
    if path.is_file():
        if path.suffix not in READERS:
            raise RecipeError(f"data.dataset: {path.name} ends in none of {', '.join(READERS)}.")
        return [("train", path)]
    found = sorted(file for file in path.iterdir() if file.suffix in READERS and file.is_file())
    if not found:
        raise RecipeError(f"data.dataset: folder {path.resolve().name!r} has no file that ends in {', '.join(READERS)}.")
    pairs = [(_SHARD.sub("", file.stem), file) for file in found]
    whole = [file.stem for file in found if not _SHARD.search(file.stem)]
    if twice := next((stem for stem in whole if sum(split == stem for split, _ in pairs) > 1), None):
        raise RecipeError(f"data.dataset: folder {path.resolve().name!r} has two files for split {twice!r}; remove one.")
    return pairs


def _read(file: Path, text_columns: list[str], label_column: str) -> pa.Table:
    if file.stat().st_size == 0:
        raise MismatchError(f"{file.name}: 0 rows: the file is empty.")
    try:
        table = READERS[file.suffix](file, text_columns, label_column)
        return table.select([*text_columns, label_column])
    except OSError as error:  # pyarrow's own errors are ValueErrors, or OSErrors without a number for a broken parquet file
        if error.errno is not None:
            raise ResourceError(f"{file.name}: cannot be read: {error.strerror}.") from None
        raise MismatchError(f"{file.name}: cannot be read as {file.suffix[1:]}: {first_line(error)}") from None
    except (pa.ArrowException, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, MismatchError):
            raise
        raise MismatchError(f"{file.name}: cannot be read as {file.suffix[1:]}: {first_line(error)}") from None


def _joined(parts: list[pa.Table], split: str) -> pa.Table:
    try:
        return pa.concat_tables(parts)
    except pa.ArrowInvalid as error:
        raise MismatchError(f"split {split!r}: its files have columns of different types: {first_line(error)}") from None


def _csv(file: Path, text_columns: list[str], label_column: str, *, tabs: bool = False) -> pa.Table:
    """CSV with a header; texts stay texts whatever they look like, ``NA`` and ``null`` included."""
    size = file.stat().st_size
    return _checked(
        pa.csv.read_csv(
            file,
            read_options=pa.csv.ReadOptions(block_size=min(size + 1, 2**31 - 1)),  # one block: a row may be long
            # Tab-separated values know no quotes: a text may begin with one, and must not swallow the rows that follow.
            parse_options=pa.csv.ParseOptions(
                delimiter="\t" if tabs else ",", quote_char=False if tabs else '"', newlines_in_values=not tabs
            ),
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(text_columns, pa.string())),
        ),
        file,
        [*text_columns, label_column],
    )


def _tsv(file: Path, text_columns: list[str], label_column: str) -> pa.Table:
    return _csv(file, text_columns, label_column, tabs=True)


def _parquet(file: Path, text_columns: list[str], label_column: str) -> pa.Table:
    check_columns(pa.parquet.read_schema(file).names, [*text_columns, label_column], file.name)
    return pa.parquet.ParquetFile(file).read(columns=[*text_columns, label_column])


def _json(file: Path, text_columns: list[str], label_column: str) -> pa.Table:
    """A list of objects, or one object a line."""
    text = file.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        rows = json.loads(text)
    else:
        rows = [_line(line, number, file) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise MismatchError(f"{file.name}: row {i} is not an object of columns and values.")
    present = list(dict.fromkeys(key for row in rows for key in row))
    wanted = [*text_columns, label_column]
    check_columns(present, wanted, file.name)
    return pa.table({column: pa.array([row.get(column) for row in rows]) for column in dict.fromkeys(wanted)})


def _line(line: str, number: int, file: Path) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise MismatchError(f"{file.name}:{number}: not valid JSON: {first_line(error)}") from None


def _checked(table: pa.Table, file: Path, wanted: list[str]) -> pa.Table:
    check_columns(table.column_names, wanted, file.name)
    return table


READERS: Mapping[str, Callable[[Path, list[str], str], pa.Table]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".json": _json,
    ".jsonl": _json,
    ".parquet": _parquet,
}
