"""Data files on this machine, read into memory: nothing is cached, so a changed file is never mistaken for the old one."""

import hashlib
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
from hf_shrink.data.rows import Columns, Raw, check_columns
from hf_shrink.errors import MismatchError, RecipeError, ResourceError
from hf_shrink.files import sha256
from hf_shrink.lines import first_line

_TEXT = ".txt"
_MANY = 8  # text files of which the report names each
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


def read_local(path: Path, config: DataConfig, wanted: Columns) -> Raw:
    """A file as split ``train``, or a folder with one file a split: ``train.csv``, ``test-00000-of-00002.parquet``.

    A ``.txt`` file is one text. A folder of them is split ``train``, or has a folder of them for each split.

    Raises:
        RecipeError: nothing there that can be read, or options that only data sets on the Hub have.
        MismatchError: a file is broken, or a column is missing.
        ResourceError: a file may not be read.
    """
    for key in ("subset", "revision"):
        if getattr(config, key) is not None:
            raise RecipeError(f"data.{key}: would be ignored: {path.name} is not on the Hub. Remove it.")
    texts, others = list(wanted.texts.values()), list(wanted.others.values())
    files = _files(path, config.train_split, plain=len(texts) == 1 and not others)
    tables: dict[str, list[pa.Table]] = {}
    for split, file in files:
        tables.setdefault(split, []).append(_read(file, texts, others))
    splits = {split: Dataset(InMemoryTable(_joined(parts, split))) for split, parts in tables.items()}
    return Raw(splits, {"dataset": path.resolve().name} | _digests(path, files))


def _digests(path: Path, files: list[tuple[str, Path]]) -> dict[str, str]:
    """SHA-256 of each file by its name; of many text files one over all of them."""
    if len(files) > _MANY and all(file.suffix == _TEXT for _, file in files):
        lines = "".join(f"{sha256(file)}  {file.relative_to(path).as_posix()}\n" for _, file in files)
        return {f"sha256 of the list of {len(files)} files": hashlib.sha256(lines.encode()).hexdigest()}
    return {f"sha256 of {file.relative_to(path).as_posix() if path.is_dir() else file.name}": sha256(file) for _, file in files}


def _files(path: Path, train_split: str, *, plain: bool) -> list[tuple[str, Path]]:
    """Each data file with the split it belongs to, in the order of names; ``plain``: where a text is all that is needed."""
    endings = [ending for ending in READERS if plain or ending != _TEXT]
    if path.is_file():
        if path.suffix not in endings:
            raise RecipeError(f"data.dataset: {path.name} ends in none of {', '.join(endings)}.")
        return [("train", path)]
    found = sorted(file for file in path.iterdir() if file.suffix in endings and file.is_file())
    if not found and plain and (inside := sorted(file for file in path.glob(f"*/*{_TEXT}") if file.is_file())):
        return [(file.parent.name, file) for file in inside]
    if found and all(file.suffix == _TEXT for file in found) and train_split not in {file.stem for file in found}:
        return [("train", file) for file in found]
    if not found:
        raise RecipeError(f"data.dataset: folder {path.resolve().name!r} has no file that ends in {', '.join(endings)}.")
    pairs = [(_SHARD.sub("", file.stem), file) for file in found]
    whole = [file.stem for file in found if not _SHARD.search(file.stem)]
    if twice := next((stem for stem in whole if sum(split == stem for split, _ in pairs) > 1), None):
        raise RecipeError(f"data.dataset: folder {path.resolve().name!r} has two files for split {twice!r}; remove one.")
    return pairs


def _read(file: Path, texts: list[str], others: list[str]) -> pa.Table:
    if file.stat().st_size == 0:
        raise MismatchError(f"{file.name}: 0 rows: the file is empty.")
    try:
        table = READERS[file.suffix](file, texts, others)
        return table.select(list(dict.fromkeys([*texts, *others])))
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


def _csv(file: Path, texts: list[str], others: list[str], *, tabs: bool = False) -> pa.Table:
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
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string())),
        ),
        file,
        [*texts, *others],
    )


def _tsv(file: Path, texts: list[str], others: list[str]) -> pa.Table:
    return _csv(file, texts, others, tabs=True)


def _parquet(file: Path, texts: list[str], others: list[str]) -> pa.Table:
    check_columns(pa.parquet.read_schema(file).names, [*texts, *others], file.name)
    return pa.parquet.ParquetFile(file).read(columns=[*texts, *others])


def _text(file: Path, texts: list[str], others: list[str]) -> pa.Table:
    """The whole file as the one text of the one row."""
    assert len(texts) == 1 and not others, "a file without columns is read for tasks that need a text alone"
    return pa.table({texts[0]: [file.read_text(encoding="utf-8-sig")]})


def _json(file: Path, texts: list[str], others: list[str]) -> pa.Table:
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
    wanted = [*texts, *others]
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


READERS: Mapping[str, Callable[[Path, list[str], list[str]], pa.Table]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".json": _json,
    ".jsonl": _json,
    ".parquet": _parquet,
    _TEXT: _text,
}
