"""Rows of image classification: folders of class folders, and files with a column of images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lrlora.data.tables import Table
from lrlora.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

BadImages = Literal["refuse", "skip"]
ENDINGS = (
    ".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".jp2", ".ppm", ".pgm",
    ".pbm", ".tga",
)  # fmt: skip
"""Of files that are read as images in a folder; a column may name any file."""
COLUMNS = ("image", "img")
"""Columns that are read as images where no text is there, and no type of a file says more."""
_EVALUATION_FOLDERS = ("validation", "valid", "val", "dev", "eval", "test")
_NAMED = 20


def image_column(table: Table, asked: str | None) -> str | None:
    """The column of images: the one that was asked for, one that the file declares, or one by its name; None: none.

    Raises:
        InputError: no such column, or several that the file declares.
    """
    if asked is not None:
        if asked not in table.columns:
            raise InputError(f"{table.where}: no column {asked!r}, got columns {', '.join(table.columns)}")
        return asked
    if len(table.image_columns) > 1:
        raise InputError(
            f"{table.where} has several columns of images: {', '.join(table.image_columns)}; pass image_column"
        )
    return next((name for name in (*table.image_columns, *COLUMNS) if name in table.columns), None)


def check_image_columns(tables: Sequence[Table], asked: str | None) -> None:
    """Refuse tables without a column of images; errors as `image_column`.

    Raises:
        InputError: naming the columns that there are.
    """
    for table in tables:
        if image_column(table, asked) is None:
            raise InputError(
                f"{table.where}: no column of images ({' or '.join(COLUMNS)}), got columns {', '.join(table.columns)}; "
                "pass image_column"
            )


def image_tables(folder: Path, notes: list[str]) -> tuple[Table | None, Table | None]:
    """Training and evaluation rows of a folder of class folders, or of one that holds train/ and test/ of such.

    Args:
        folder: to look into.
        notes: gets what the user should know.

    Returns:
        A table each with image, the path, and label, the name of the class folder; None where there is none.

    Raises:
        InputError: class folders next to a training folder, or several of these.
    """
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    splits = {path.name: path for path in inside if _classes_in(path)}
    train = [path for name, path in splits.items() if re.fullmatch(r"train\w*", name)]
    evaluation = [splits[name] for name in _EVALUATION_FOLDERS if name in splits]
    if not train and not evaluation:
        return (_table(folder, notes) if _classes_in(folder) else None), None
    if len(train) > 1:
        raise InputError(f"{folder} has the training images {len(train)} times: {', '.join(p.name for p in train)}")
    read = [*train, *evaluation[:1]]
    if left := [path.name for path in inside if path not in read]:
        notes.append(f"{folder}: read {' and '.join(path.name for path in read)}; not read: {', '.join(left)}")
    return tuple(_table(found[0], notes) if found else None for found in (train, evaluation))  # pyright: ignore[reportReturnType]


def rows_of_images(
    tables: Sequence[Table], labels: Sequence[Sequence[int]], asked: str | None, bad: BadImages, notes: list[str]
) -> tuple[list[Dataset], int]:
    """The rows of tables of images; every image is decoded once, and none is kept.

    Args:
        tables: that passed `check_image_columns`. Their images are paths, relative to the table's own folder, bytes, or
            datasets' bytes and path.
        labels: numbers of the classes, of each table.
        asked: the column, where the user named it.
        bad: what becomes of images that cannot be decoded.
        notes: gets what the user should know.

    Returns:
        Rows with file, bytes (None: they are in the file), label, row and digest, the SHA-256 of the bytes; and how
        many were left out.

    Raises:
        InputError: images that cannot be decoded, all counted and the first 20 with their reason; or nothing else.
    """
    from datasets import Dataset, Features, Value

    features = Features(
        file=Value("string"), bytes=Value("large_binary"), label=Value("int64"), row=Value("int64"),
        digest=Value("string"),
    )  # fmt: skip
    made, broken = [], []
    for table, numbers in zip(tables, labels, strict=True):
        column = image_column(table, asked)
        assert column is not None
        rows: dict[str, list[Any]] = {name: [] for name in features}
        several = 0
        for position, (value, label) in enumerate(zip(table.columns[column], numbers, strict=True)):
            file, content, digest, frames, reason = _read(value, table)
            if reason is not None:
                broken.append(f"{table.where}: row {table.numbers[position]}{f', {file}' if file else ''}: {reason}")
                continue
            several += frames > 1
            for name, cell in zip(features, (file, content, label, table.numbers[position], digest), strict=True):
                rows[name].append(cell)
        if several:
            notes.append(f"{table.where}: {several} images have several frames, of which the first is read")
        made.append(Dataset.from_dict(rows, features))
    if broken and bad == "refuse":
        more = f"\n  and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        listed = "".join(f"\n  {line}" for line in broken[:_NAMED])
        raise InputError(
            f"{len(broken)} of {sum(map(len, tables))} images cannot be read; repair or remove them, or pass "
            f"--bad_images skip to leave them out:{listed}{more}"
        )
    notes += [f"left out, it cannot be read: {line}" for line in broken]
    if empty := [table.where for table, rows in zip(tables, made, strict=True) if not len(rows)]:
        raise InputError(f"{empty[0]}: none of its images can be read, the first because: {broken[0]}")
    return made, len(broken)


def _read(value: Any, table: Table) -> tuple[str, bytes | None, str, int, str | None]:
    """The file and the bytes of a cell, the digest of the bytes, how many frames; and why it cannot be read."""
    from lrlora.data.pixels import content_of, frames_of, opened

    content = value.get("bytes") if isinstance(value, dict) else value if isinstance(value, bytes) else None
    named = value.get("path") if isinstance(value, dict) else value if isinstance(value, str) else None
    # a relative path is that of the file of rows; of bytes it is only a name
    file = str(named or "") if content is not None else str(Path(table.where).parent / named) if named else ""
    try:
        if content is None and not file:
            raise ValueError("it has no image" if not value else f"a {type(value).__name__} is no image")
        found = content_of(file, content)
        opened(found, is_sketch=True)
        return file, content, hashlib.sha256(found).hexdigest(), frames_of(found), None
    except ValueError as error:
        return file, content, "", 0, str(error)


def _classes_in(folder: Path) -> list[Path]:
    """The folders in a folder that hold images, at any depth."""
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    return [path for path in inside if any(_is_image(file) for file in path.rglob("*"))]


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in ENDINGS and not file.name.startswith(".") and file.is_file()


def _table(folder: Path, notes: list[str]) -> Table:
    """A row per image, by class and path; what is no image is said."""
    classes, images, labels, others = _classes_in(folder), [], [], []
    for path in sorted(folder.iterdir()):
        if path not in classes and not path.name.startswith("."):
            others.append(path.name)
    for each in classes:
        for file in sorted(each.rglob("*")):
            if _is_image(file):
                images.append(str(file.absolute()))
                labels.append(each.name)
            elif file.is_file():
                others.append(str(file.relative_to(folder)))
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        notes.append(f"{folder}: not read, no images in class folders: {', '.join(others[:3])}{more}")
    columns: dict[str, Sequence[Any]] = {"image": images, "label": labels}
    numbers, names = range(1, len(images) + 1), {"label": [each.name for each in classes]}
    return Table(str(folder), columns, numbers, names, image_columns=("image",))
