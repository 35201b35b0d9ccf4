"""Files and folders that are there whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lrlora.errors import InputError


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path to write to, beside `path`; renamed into place at the end, deleted after an error.

    Raises:
        InputError: the disk is full.

    Example:
        with new_file(Path("ranks.csv")) as beside:
            beside.write_text("...")
    """
    beside = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with explained(path):
            yield beside
            with beside.open("rb") as written:
                os.fsync(written.fileno())
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder to write to, beside `path`; renamed into place at the end, deleted after an error.

    What a killed process left beside `path` is deleted at the start.

    Args:
        path: where the folder shall stand.
        overwrite: take the place of a folder that is there.

    Raises:
        InputError: `path` is there and not empty, and overwrite is off; or the disk is full.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, needed a folder or nothing; pass another --out")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise InputError(f"{path} is there already and is not empty; pass another --out, or --overwrite to replace it")
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with explained(path):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            yield beside
            old = path.with_name(f".{path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            if path.exists():
                path.rename(old)
            beside.rename(path)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the errors of a full or forbidden disk into one line about `path`.

    Raises:
        InputError: the disk is full, or `path` may not be written.
    """
    try:
        yield
    except Exception as error:
        # safetensors has an error of its own for what the system says
        if getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error):
            raise InputError(f"no space left on the disk while writing {path}; nothing was written there") from error
        if isinstance(error, PermissionError):
            raise InputError(f"not allowed to write {path}; pass a place that is yours") from error
        raise


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented, to be there whole or not at all."""
    with new_file(path) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path, advice: str = "copy or make it again") -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        advice: what the user can do where it is broken.

    Raises:
        InputError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable as JSON ({error}); {advice}") from error


def append_line(path: Path, line: str) -> None:
    """Add a line to a file that grows, and see it on the disk; a kill may leave half of it: see `read_json_lines`.

    Raises:
        InputError: the disk is full, or `path` may not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with explained(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path: Path) -> list[Any]:
    """The JSON of every line of a file; a last line that a kill cut short is left out.

    Raises:
        InputError: another line is not JSON.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise InputError(f"{path}, line {number}, is not JSON ({error}); delete that line") from error
    return found
