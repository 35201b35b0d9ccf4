"""SHA256SUMS, as `sha256sum -c` reads it: by it a file that was changed or cut short since is noticed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from lrlora.files import new_file
from lrlora.saved.names import METRICS, PREDICTIONS, RANKS, SUMS
from lrlora.saved.owned import named

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def write_sums(folder: Path, files: Iterable[Path] | None = None) -> None:
    """Write the SHA-256 of files into the SHA256SUMS of a folder.

    Args:
        folder: where it is written; names in it are relative to this folder.
        files: within the folder; None means all files at any depth.
    """
    found = [path for path in folder.rglob("*") if path.is_file()] if files is None else list(files)
    lines = [f"{_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in sorted(found) if path.name != SUMS]
    with new_file(folder / SUMS) as beside:
        beside.write_text("".join(lines), encoding="utf-8")


def write_sums_of_run(folder: Path, adapter: Path) -> None:
    """As `write_sums`, of what a run ends with: its adapter, ranks.json, metrics.json, predictions.jsonl."""
    results = [path for path in (folder / name for name in (METRICS, PREDICTIONS, RANKS)) if path.exists()]
    write_sums(folder, [*(path for path in adapter.iterdir() if path.is_file()), *results])


def said_of_sums(folder: str | Path) -> str | None:
    """What to tell where files are not those that were written: their names; None where all are, or no sums are there.

    Args:
        folder: a run, the adapter in one, a merged model or an exported LoRA.
    """
    path = Path(os.path.abspath(Path(folder).expanduser()))
    # of an adapter in a run its own files
    sums, mine = path / SUMS, ""
    if not sums.is_file():
        sums, mine = path.parent / SUMS, f"{path.name}/"
    if not sums.is_file():
        return None
    wrong = []
    for line in sums.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n"):
        found = _LINE.fullmatch(line)
        if found is None:
            return f"a {SUMS} that is not as sha256sum writes it: what was changed since is not known"
        digest, name = found.groups()
        file = sums.parent / name
        if name.startswith(mine) and not file.is_file():
            wrong.append(f"{name} is missing")
        elif name.startswith(mine) and _digest(file) != digest:
            wrong.append(name)
    return f"files that are not as they were written, by {sums}: {named(wrong)}" if wrong else None


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
