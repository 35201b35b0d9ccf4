"""A file of JSON lines, there once it is whole; until then a killed process goes on in `.NAME.part` next to it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lrlora.errors import InputError
from lrlora.files import append_line, check_file, make_folder, new_file, read_json_lines

Record = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Records on their way into a file; made by `resumable`.

    Args:
        out: the file.
        path: the part, whose first line says what the records are made with.
        done: records that were there already.
    """

    out: Path
    path: Path
    done: list[Record]

    def keep(self, record: Record) -> None:
        """Add a record, and see it on the disk."""
        append_line(self.path, _line(record))

    def finish(self, records: Sequence[Record]) -> None:
        """Write the file, in the order of the records, and delete the part."""
        with new_file(self.out) as beside:
            beside.write_text("".join(_line(record) + "\n" for record in records), encoding="utf-8")
        self.path.unlink(missing_ok=True)


@contextmanager
def resumable(
    out: Path,
    settings: Mapping[str, Any],
    overwrite: bool = False,
    what: str = "answers",
    flag: str = "--overwrite",
) -> Iterator[Part]:
    """The part of a file, with what an interrupted process left there; one process at a time has it.

    Args:
        out: the file; that it may be written is for `check_out` to say.
        settings: everything that decides the records.
        overwrite: begin anew where records of other settings are.
        what: the records, in errors.
        flag: that begins anew, in errors.

    Raises:
        InputError: another process has it, or it holds records of other settings.
    """
    part = out.with_name(f".{out.name}.part")
    make_folder(out.parent)
    lock = FileLock(part.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"another process is writing {out}; wait for it, or pass another --out") from error
    try:
        yield Part(out, part, _resumed(part, json.loads(json.dumps(settings, default=str)), overwrite, what, flag))
    finally:
        # the file goes first, while it is ours
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse, before a model is loaded, a file that is there.

    Raises:
        InputError: it is a folder, or a file and overwrite is off.
    """
    check_file(out)
    if out.expanduser().exists() and not overwrite:
        raise InputError(f"{out} is there already; pass another --out, or --overwrite to replace it")


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False)


def _resumed(part: Path, settings: Record, overwrite: bool, what: str, flag: str) -> list[Record]:
    """The records that are there, made with these settings; begins the file where there are none."""
    lines = read_json_lines(part) if part.exists() else []
    if lines and lines[0] == settings:
        # without what a kill cut short, before more is added
        text = "".join(_line(line) + "\n" for line in lines)
        if part.read_text(encoding="utf-8", errors="replace") != text:
            with new_file(part) as beside:
                beside.write_text(text, encoding="utf-8")
        return lines[1:]
    if lines and not overwrite:
        changed = sorted(n for n in {*lines[0], *settings} if lines[0].get(n) != settings.get(n))
        raise InputError(
            f"{part} holds {len(lines) - 1} {what} that were made with other settings ({', '.join(changed)}); give "
            f"the same command again, pass another --out, or {flag} to begin anew"
        )
    with new_file(part) as beside:
        beside.write_text(_line(settings) + "\n", encoding="utf-8")
    return []
