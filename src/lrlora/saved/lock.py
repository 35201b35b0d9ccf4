"""The lock on a run folder: one process at a time trains there."""

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
    make_folder(folder)
    with explained(folder):
        held = FileLock(folder / LOCK)
        try:
            held.acquire(timeout=0)
        except Timeout as error:
            raise InputError(f"another process is training in {folder}; wait for it, or pass another --out") from error
    return held


def unlock(held: FileLock) -> None:
    """Let other processes train there; the file goes first, while it is ours."""
    Path(held.lock_file).unlink(missing_ok=True)
    held.release()
