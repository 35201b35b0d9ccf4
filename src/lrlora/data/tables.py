"""Local files as tables: every row of the very file that was named, with its number in that file.

`datasets` reads a path as a pattern, caches what it read by the file's time stamp, takes NA in a CSV for a gap, and
names no row where a type does not fit. So text files are read by Python's own json and csv, and parquet by pyarrow.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrlora.errors import InputError

READABLE = (".jsonl", ".json", ".csv", ".txt", ".parquet")
"""Endings of files of rows; all but parquet may be gzipped, with .gz behind them."""


@dataclass(frozen=True)
class Table:
    """Rows as a file or a split of the hub holds them.

    Args:
        where: the file or the split, for messages.
        columns: values by column, of equal length.
        numbers: of each row in its file, from 1: the line of a jsonl or text file, the row below the header of a CSV.
        class_names: names of the classes of a column that declares them (ClassLabel); its values are names then, and
            None for a row without a label.
        is_text: whether the file knows no types: every value is text, and an empty one means that there is none (CSV).
        rows_are: what a row is where the file does not say: paragraphs or lines of plain text.
        image_columns: that the file declares to hold images; their values are bytes and path, not decoded.
    """

    where: str
    columns: dict[str, Sequence[Any]]
    numbers: Sequence[int]
    class_names: dict[str, list[str]] = field(default_factory=dict)
    is_text: bool = False
    rows_are: str = ""
    image_columns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    def error(self, position: int, problem: str) -> InputError:
        """An error about a row, named as it is counted in the file."""
        row = {name: values[position] for name, values in self.columns.items()}
        return InputError(f"{self.where}: row {self.numbers[position]} of {len(self)} {problem}: {shortened(row)}")


def shortened(value: object) -> str:
    """A value in at most 120 characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= 120 else text[:117] + "..."


def texts(table: Table, column: str, notes: list[str], may_lack: bool = False) -> list[str]:
    """A column of text; whole numbers are read as their digits, which is said.

    Raises:
        InputError: a row that has none (unless `may_lack`), or something else in its place.
    """
    found = []
    has_numbers = False
    for position, value in enumerate(table.columns[column]):
        if is_missing(table, value):
            if not may_lack:
                raise table.error(position, f"has no {column!r}")
            value = ""
        elif isinstance(value, int) and not isinstance(value, bool):
            value, has_numbers = str(value), True
        elif not isinstance(value, str):
            raise table.error(position, f"has a {type(value).__name__} in {column!r}, needed a text")
        found.append(value)
    if has_numbers:
        notes.append(f"{table.where}: whole numbers in {column!r} are read as text")
    return found


def is_missing(table: Table, value: Any) -> bool:
    """Whether a cell is empty."""
    return value is None or (value == "" and table.is_text) or (isinstance(value, float) and math.isnan(value))


def is_readable(path: Path) -> bool:
    """Whether a file's name ends as files of rows do."""
    return _ending(path) is not None


def read_table(path: Path) -> Table:
    """Read a file of rows.

    Args:
        path: .jsonl, .json (an array of rows, or a row per line), .csv, .txt (a column "text" of the paragraphs between
            blank lines; of the lines, where no line is blank) or .parquet; .gz behind all but the last.

    Raises:
        InputError: another ending, a file that is broken, named with its row, or one without rows.
    """
    ending = _ending(path)
    if ending is None:
        raise InputError(f"cannot read {path}: needed .jsonl, .json, .csv, .txt (each also with .gz) or .parquet")
    try:
        table = {".parquet": _parquet, ".csv": _csv, ".txt": _plain}.get(ending, _json)(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if not len(table):
        raise InputError(f"{path} has no rows")
    return table


def table_of_dataset(rows: Any, where: str) -> Table:
    """A Dataset of the library datasets as a table; class numbers become the names that its features declare."""
    from datasets import Image

    columns: dict[str, Sequence[Any]] = {}
    class_names = {}
    images = tuple(name for name, feature in rows.features.items() if isinstance(feature, Image))
    for name in images:
        rows = rows.cast_column(name, Image(decode=False))
    for name, feature in rows.features.items():
        values = list(rows[name])
        names = getattr(feature, "names", None)
        if names is not None:
            class_names[name] = list(names)
            # the hub marks a row without a label by -1
            values = [None if v is None or v < 0 else names[v] for v in values]
        columns[name] = values
    return Table(where, columns, range(1, len(rows) + 1), class_names, image_columns=images)


def _ending(path: Path) -> str | None:
    name = path.name.lower()
    ending = next((e for e in READABLE if name.removesuffix(".gz").endswith(e)), None)
    return None if ending == ".parquet" and name.endswith(".gz") else ending


def _parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset

    try:
        # one file as it is now: no cache of datasets is asked, or written
        with path.open("rb") as file:
            rows = Dataset(pyarrow.parquet.read_table(file))
    except pyarrow.ArrowException as error:
        raise InputError(f"cannot read {path} as parquet: {str(error).splitlines()[0]}") from error
    return table_of_dataset(rows, str(path))


def _text(path: Path) -> str:
    try:
        opened = gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")
        with opened as file:
            # a mark at the front, as Excel writes it, is no part of the first column's name
            return file.read().decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}; copy it again") from error
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path}: it is not UTF-8 ({error}); save it as UTF-8") from error


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a .json or .jsonl file, also gzipped, each with its number.

    Raises:
        InputError: a file that is not readable, or a row that is no object, named.
    """
    text = _text(path)
    is_array = ".json" in path.suffixes and text.lstrip().startswith("[")
    for number, row in _array(path, text) if is_array else _lines(path, text):
        if not isinstance(row, dict):
            raise InputError(f"{path}: row {number} is no object with fields: {shortened(row)}")
        yield number, row


def _json(path: Path) -> Table:
    columns: dict[str, list[Any]] = {}
    numbers: list[int] = []
    for number, row in json_rows(path):
        for name in row:
            if name not in columns:
                columns[name] = [None] * len(numbers)
        for name, values in columns.items():
            values.append(row.get(name))
        numbers.append(number)
    return Table(str(path), dict(columns), numbers)


def _lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(io.StringIO(text), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"cannot read {path} as JSON: row {number}: {error}: {shortened(line)}") from error


def _array(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    try:
        yield from enumerate(json.loads(text), 1)
    except json.JSONDecodeError as error:
        raise InputError(f"cannot read {path} as JSON: {error}") from error


def _plain(path: Path) -> Table:
    lines = [line.rstrip("\r\n") for line in io.StringIO(_text(path), newline="")]
    filled = [number for number, line in enumerate(lines, 1) if line.strip()]
    is_broken = any(not line.strip() for line in lines[filled[0] : filled[-1]]) if filled else False
    if not is_broken:
        return Table(str(path), {"text": [lines[n - 1] for n in filled]}, filled, rows_are="lines")
    paragraphs: list[list[str]] = []
    numbers: list[int] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if number == 1 or not lines[number - 2].strip():
            paragraphs.append([])
            numbers.append(number)
        paragraphs[-1].append(line)
    return Table(str(path), {"text": ["\n".join(each) for each in paragraphs]}, numbers, rows_are="paragraphs")


def _csv(path: Path) -> Table:
    # a cell may hold a whole document
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    numbers: list[int] = []
    try:
        header = next(reader, [])
        twice = {name for name in header if header.count(name) > 1}
        if twice:
            raise InputError(f"{path}: its header names the column {min(twice)!r} twice")
        columns: dict[str, list[str]] = {name: [] for name in header}
        for cells in reader:
            if not cells:
                continue
            numbers.append(len(numbers) + 1)
            if len(cells) != len(header):
                advice = "a text that holds a comma must be in quotes" if len(cells) > len(header) else "cells lack"
                raise InputError(
                    f"{path}: row {numbers[-1]} (line {reader.line_num}) has {len(cells)} cells, the header "
                    f"{len(header)}: {advice}: {shortened(','.join(cells))}"
                )
            for values, cell in zip(columns.values(), cells, strict=True):
                values.append(cell)
    except csv.Error as error:
        raise InputError(f"cannot read {path} as CSV: line {reader.line_num}: {error}") from error
    return Table(str(path), dict(columns), numbers, is_text=True)
