"""Locks: one process at a time trains in a run folder, or searches with one file."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from lrlora.errors import InputError
from lrlora.files import explained, make_folder
from lrlora.saved.names import LOCK


def lock(folder: Path) -> FileLock:
    """Keep other processes from training here; until the lock is released, or the process ends. Makes the folder.

    Raises:
        InputError: another process trains there, or the folder cannot be made.
    """
    return _acquired(folder / LOCK, f"another process is training in {folder}; wait for it, or pass another --out")


def lock_file(file: Path) -> FileLock:
    """Keep other processes from a search whose file this is; until the lock is released, or the process ends.

    Raises:
        InputError: another process searches with it, or its folder cannot be written.
    """
    beside = file.with_name(f".{file.name}.lock")
    return _acquired(beside, f"another process is searching with {file}; wait for it, or pass another --out")


def _acquired(place: Path, refusal: str) -> FileLock:
    make_folder(place.parent)
    with explained(place.parent):
        held = FileLock(place)
        try:
            held.acquire(timeout=0)
        except Timeout as error:
            raise InputError(refusal) from error
    return held


def unlock(held: FileLock) -> None:
    """Let other processes in; the file goes first, while it is ours."""
    Path(held.lock_file).unlink(missing_ok=True)
    held.release()
