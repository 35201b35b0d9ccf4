"""Files and folders that are there whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lrlora.errors import InputError

_NOT_WRITTEN = {
    (errno.ENOSPC, errno.EDQUOT): "no space left on the disk while writing {}; {}",
    (errno.EACCES, errno.EPERM): "not allowed to write {}; pass a place that is yours",
    (errno.EROFS,): "{} is on a file system that is read-only; pass another place",
    (errno.EISDIR,): "{} is a folder, needed a file; pass another place",
    (errno.ENAMETOOLONG,): "the name {} is too long for the file system; pass a shorter one",
    (errno.ELOOP,): "{} leads through links that lead to each other; pass another place",
}


@contextlib.contextmanager
def new_file(path: Path, read: Iterable[Path] = ()) -> Iterator[Path]:
    """A temporary file next to `path`, to write to; renamed to `path` at the end, deleted after an error.

    Args:
        path: the file.
        read: folders that what is written was read from; see `check_file`.

    Raises:
        InputError: `path` is a folder or a file that is read, may not be written, or the disk is full.

    Example:
        with new_file(Path("ranks.csv")) as beside:
            beside.write_text("...")
    """
    check_file(path, read)
    path = path.expanduser()
    beside = path.with_name(f".{path.name}.tmp")
    try:
        make_folder(path.parent)
        with explained(path):
            yield beside
            with beside.open("rb") as written:
                os.fsync(written.fileno())
            beside.replace(path)
    finally:
        # where nothing may be written nothing can be deleted
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(
    path: Path, overwrite: bool = False, written: Sequence[str] | None = None, read: Iterable[Path] = ()
) -> Iterator[Path]:
    """A temporary empty folder next to `path`, to write to; renamed to `path` at the end, deleted after an error.

    A temporary folder that a killed process left is deleted at the start. A folder that it was about to replace is put
    back.

    Args:
        path: of the folder; a link to a folder means that folder.
        overwrite: take the place of a folder that is there.
        written: patterns of the files that may be deleted with such a folder; None means all files.
        read: folders and files that the new folder must not be, hold or be in.

    Raises:
        InputError: `path` is there and not empty, and overwrite is off, or it holds other files than `written`; it is,
            holds or is in what is read; or the disk is full.
    """
    check_folder(path, overwrite, written, read)
    path = path.expanduser().resolve()
    beside, old = (path.with_name(f".{path.name}.{end}") for end in ("tmp", "old"))
    try:
        with explained(path):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            yield beside
            shutil.rmtree(old, ignore_errors=True)
            if path.exists():
                path.rename(old)
            beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        _put_back(path, old)


def check_folder(path: Path, overwrite: bool, written: Sequence[str] | None, read: Iterable[Path]) -> None:
    """Refuse, before any work, a folder that `new_folder` would refuse; the arguments are the same."""
    # not through a link that leads nowhere or in a circle, which resolve() would follow half of the way
    path = Path(os.path.realpath(path.expanduser()))
    for source in read:
        _refuse_overlap(path, source)
    if not path.name:
        raise InputError(f"{path} is the root of all files; pass another --out")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, needed a folder or nothing; pass another --out")
    _put_back(path, path.with_name(f".{path.name}.old"))
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise InputError(
                f"{path} is there already and is not empty; pass another --out, or --overwrite to replace it"
            )
        foreign = [] if written is None else _others(path, written)
        if foreign:
            raise InputError(
                f"{path} holds {foreign[0]}, which this command does not write ({len(foreign)} such files): "
                "--overwrite does not delete it; pass another --out"
            )


def check_file(path: Path, read: Iterable[Path] = ()) -> None:
    """Refuse to write over a file that is read, or over a folder.

    An existing .csv or .html is a result, and may be replaced. No other file in a folder that is read may be replaced.

    Raises:
        InputError: it is such a file or folder.
    """
    target = Path(os.path.realpath(path.expanduser()))
    if target.is_dir():
        raise InputError(f"{path} is a folder, needed a file; pass a name within it")
    if not target.exists() or target.suffix.lower() in (".csv", ".html"):
        return
    for source in read:
        # a link within the folder may lead to the file too
        places = (source, *source.iterdir()) if source.is_dir() else (source,)
        if any(_is_same(parent, place) for place in places for parent in (target, *target.parents)):
            raise InputError(f"{path} is there already, in {source}, which is read; pass another file")


def _refuse_overlap(out: Path, source: Path) -> None:
    source = Path(os.path.realpath(source.expanduser()))
    # files of a folder may be links to other places, as in the hub's cache
    links = [Path(os.path.realpath(f)) for f in source.iterdir() if f.is_symlink()] if source.is_dir() else []
    is_around = any(_is_same(out, p) for inside in (source, *links) for p in (inside, *inside.parents))
    if is_around or any(_is_same(p, source) for p in out.parents):
        raise InputError(f"--out {out} is, holds or is inside {source}, which is read; pass another --out")


def _is_same(a: Path, b: Path) -> bool:
    # one file by the file system, however it is spelled
    return a.exists() and b.exists() and a.samefile(b)


def _others(folder: Path, written: Sequence[str]) -> list[str]:
    """Files of a folder that no pattern names; "a*/b" is a file b in a folder a..."""
    files = [f.relative_to(folder) for f in sorted(folder.rglob("*")) if f.is_symlink() or not f.is_dir()]
    return [str(f) for f in files if not any(_matches(f.parts, tuple(p.split("/"))) for p in written)]


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    return len(parts) == len(pattern) and all(map(fnmatch.fnmatchcase, parts, pattern))


def _put_back(path: Path, old: Path) -> None:
    """What was there before, where the new one did not come; else it is deleted."""
    if old.is_dir() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def explained(path: Path, left: str = "nothing was written there") -> Iterator[None]:
    """Turn what the system says of a disk or a path that cannot be written into one line about `path`.

    Args:
        path: what is written.
        left: what is there when the disk is full.

    Raises:
        InputError: the disk is full or read-only, or `path` may not be written or cannot be there.
    """
    try:
        yield
    except Exception as error:
        reason = _why_not_written(error, path, left)
        if reason is None:
            raise
        raise InputError(reason) from error


def _why_not_written(error: BaseException, path: Path, left: str) -> str | None:
    number, name = getattr(error, "errno", None), getattr(error, "filename", None)
    if isinstance(name, str):
        whole, file = Path(os.path.abspath(path)), os.path.abspath(name)
        if not (Path(file).is_relative_to(whole.parent) or whole.is_relative_to(file)):
            return None  # it is about another file, which was read
    # safetensors and torch have errors of their own for what the system says
    said = re.search(r"os error (\d+)", str(error))
    if number is None and said:
        number = int(said.group(1))
    if "inline_container" in str(error):
        number = errno.ENOSPC  # torch.save says where it is in its file, and no more
    return next((text.format(path, left) for numbers, text in _NOT_WRITTEN.items() if number in numbers), None)


def make_folder(path: Path) -> None:
    """Make a folder and those around it, where they are not there yet.

    Raises:
        InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}; pass another place") from error


def cache_folder() -> Path:
    """Where this project keeps what it makes once: $XDG_CACHE_HOME/lrlora (~/.cache/lrlora)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lrlora"


def check_cache(folder: Path, variable: str) -> None:
    """Refuse a cache that cannot be written, before a library blames what it reads.

    Raises:
        InputError: names the folder, and the environment variable that says where it is.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to the cache {folder}: {error.strerror}; set {variable} to a folder that is yours"
        ) from error


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
    make_folder(path.parent)
    with explained(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def drop_lines_after(path: Path, step: int) -> int | None:
    """Keep the lines of JSON up to a "step", only whole lines; returns the last step kept, None where there is none."""
    if not path.exists():
        return None
    kept = [line for line in read_json_lines(path) if line["step"] <= step]
    with new_file(path) as beside:
        beside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return kept[-1]["step"] if kept else None


def read_json_lines(path: Path) -> list[Any]:
    """The JSON of every line of a file; a last line that a kill cut short is left out.

    Raises:
        InputError: another line is not JSON.
    """
    # splitlines would also end a line at U+2028 and others, which a text in JSON may hold as they are
    lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise InputError(f"{path}, line {number}, is not JSON ({error}); delete that line") from error
    return found
