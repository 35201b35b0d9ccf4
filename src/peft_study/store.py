"""results.jsonl: one line per finished cell, written whole, by one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from lrlora.errors import InputError
from lrlora.files import explained
from peft_study.result import CellResult


class Results:
    """The results of a study on disk; a `with` block holds the lock on them.

    A line is written by one call, to the end of the file, and is on the disk before the next cell is counted. What a
    killed process left half-written is cut off at the start: that cell runs again.

    Args:
        path: the file; made where it is missing.

    Raises:
        InputError: another process writes there, or the file holds something else.

    Example:
        with Results(Path("runs/mine/results.jsonl")) as results:
            results.append(Bench(study).run(cell))
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, CellResult] = {}
        self._file = -1

    def __enter__(self) -> Results:
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _repair(self._file, self.path)
            self.rows = {row.fingerprint: row for row in read_rows(self.path)}
        except BlockingIOError as error:
            os.close(self._file)
            raise InputError(f"another process is running this study: {self.path} is locked; wait for it") from error
        except BaseException:
            os.close(self._file)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def append(self, row: CellResult) -> None:
        """Write one row; a later row of the same cell takes the place of an earlier one; inf and NaN become null.

        Raises:
            InputError: the disk is full.
        """
        row = row.finite()
        line = (json.dumps(row.as_dict(), allow_nan=False) + "\n").encode()
        with explained(self.path):
            written = os.write(self._file, line)
            if written != len(line):
                _repair(self._file, self.path)
                raise InputError(f"no space left on the disk while writing {self.path}; the cell was not counted")
            os.fsync(self._file)
        self.rows[row.fingerprint] = row


def read_rows(path: Path) -> list[CellResult]:
    """All whole rows of a results file, in the order in which they were written; a last line cut short is left out.

    Raises:
        InputError: no such file, or a line that is no row of a study, or of a newer version.
    """
    if not path.is_file():
        raise InputError(f"no results there: {path}")
    rows = []
    *whole, last = path.read_bytes().split(b"\n")
    for number, line in enumerate(whole if _row_of(last) is None else [*whole, last], start=1):
        row = _row_of(line)
        if row is None:
            raise InputError(f"{path}, line {number} is no row of a study; delete the line, and its cell runs again")
        try:
            rows.append(CellResult.of(row))
        except InputError as error:
            raise InputError(f"{path}, line {number} {error}") from error
    return rows


def _row_of(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "fingerprint" in row else None


def _repair(file: int, path: Path) -> None:
    content = path.read_bytes()
    if not content or content.endswith(b"\n"):
        return
    head, _, tail = content.rpartition(b"\n")
    if _row_of(tail) is None:
        os.ftruncate(file, len(head) + 1 if b"\n" in content else 0)
    else:
        # whole but for its end
        os.write(file, b"\n")
    os.fsync(file)
