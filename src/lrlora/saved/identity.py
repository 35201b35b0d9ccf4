"""What a result was made from, as numbers: the rows of a task, and the weights of a base model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from lrlora.data import TaskData
from lrlora.data.embedded import encoder_folder, model_folder
from lrlora.data.tasks import MACRO_F1
from lrlora.saved import names
from lrlora.saved.local import cached

_NOT_CONTENT = ("row", "file", "bytes")
"""Columns that are no part of a row's content: its number, and of an image, whose digest is one, place and bytes."""

_READ_BY_TRANSFORMERS = (
    ".json", ".safetensors", ".bin", ".gguf", ".txt", ".model", ".jinja", ".tiktoken", ".py",
)  # fmt: skip
_CHUNK = 1 << 22


def digest_of_rows(task: TaskData) -> str:
    """A number for what is trained on and measured on: any other row, class or metric gives another one."""
    # the number of a task is the same as before there was a macro-F1: its classes say whether it has one
    metrics = [name for name in task.metrics if name != MACRO_F1]
    sha = hashlib.sha256(json.dumps([task.kind, task.labels, metrics]).encode())
    for rows in (task.train, task.evaluation):
        sha.update(b"\0")
        names = [name for name in rows.column_names if name not in _NOT_CONTENT]
        for values in zip(*(rows[name][:] for name in names), strict=True):
            sha.update(json.dumps(dict(zip(names, values, strict=True)), sort_keys=True).encode())
    return sha.hexdigest()[:16]


def digest_of_model(name: str | None, revision: str | None = None) -> str:
    """What names the weights of a base model: the content of its folder, or its name and revision on the hub.

    Every byte of the files that transformers reads is hashed, wherever the folder is: about a second per gigabyte.

    Args:
        name: a folder, a name on the hub, "embedded-decoder", or None for the embedded encoder.
        revision: of a model on the hub; None: its main branch.

    Returns:
        16 hexadecimal digits for a folder; NAME@COMMIT for a model in the hub's cache, NAME where it is not there yet.
    """
    files = _files_of(name)
    if files is None:
        return _revision_of(str(name), revision)
    sha = hashlib.sha256()
    for file in files:
        sha.update(f"{file.name} {file.stat().st_size}".encode())
        with file.open("rb") as stream:
            while part := stream.read(_CHUNK):
                sha.update(part)
    return sha.hexdigest()[:16]


def stamp_of_model(name: str | None) -> object:
    """What changes whenever a base model is written to, without reading it: sizes and times of its files.

    Args:
        name: as in `digest_of_model`.
    """
    files = _files_of(name)
    if files is None:
        return _revision_of(str(name))
    stats = [(file.name, file.stat()) for file in files]
    # the time of the last change of the inode as well: a copy can bring its old time of writing along
    return [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats]


def _files_of(name: str | None) -> list[Path] | None:
    folder = encoder_folder() if name is None else Path(model_folder(name)).expanduser()
    if not folder.is_dir():
        return None
    return sorted(f for f in folder.iterdir() if f.is_file() and f.suffix in _READ_BY_TRANSFORMERS)


def _revision_of(name: str, revision: str | None = None) -> str:
    # models--OWNER--NAME/snapshots/COMMIT
    found = cached(name, names.CONFIG, revision)
    return name if found is None else f"{name}@{found.name}"
