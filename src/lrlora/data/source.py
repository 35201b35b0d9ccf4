"""Where the rows of a task are: the training and the evaluation table of a file, a folder, or a dataset of the hub."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrlora.data import embedded
from lrlora.data.images import BadImages, image_tables
from lrlora.data.tables import Table, is_readable, read_table, shortened, table_of_dataset
from lrlora.data.tasks import GLUE, Kind
from lrlora.errors import InputError

_EVALUATION_WORDS = ("validation", "valid", "dev", "eval", "test")


@dataclass(frozen=True)
class DataSource:
    """Where the rows of a task come from, and how to read them.

    Args:
        data: a file, a folder, the name of a hub dataset, "embedded-digits", or None for the embedded sample.
        task: name of the task; in a folder it picks TASK_train.* and TASK_dev.*; GLUE's names bring columns and
            metrics.
        subset: configuration of a hub dataset.
        kind: one of `lrlora.data.Kind`; None reads it off the columns.
        text_columns: one or two columns of text; None reads them off the file.
        label_column: column of the label.
        eval_data: a file, folder or hub dataset whose rows are evaluated, all of them; None: those next to the training
            rows, or a tenth split off them.
        train_rows, eval_rows: use at most so many, drawn with `seed`; None means all.
        seed: of that draw, and of the split where there is no evaluation file.
        image_column: column of images; None reads it off the file.
        bad_images: "refuse" images that cannot be decoded, or "skip" them.
    """

    data: str | None = None
    task: str | None = None
    subset: str | None = None
    kind: Kind | None = None
    text_columns: tuple[str, ...] | None = None
    label_column: str = "label"
    train_rows: int | None = None
    eval_rows: int | None = None
    seed: int = 0
    eval_data: str | None = None
    image_column: str | None = None
    bad_images: BadImages = "refuse"


def training_tables(source: DataSource, notes: list[str] | None = None) -> tuple[Table, Table | None, str]:
    """Training rows, evaluation rows where there are some, and a name for the task; `notes` gets what to say."""
    if source.data is None:
        train, evaluation = (_titles(rows) for rows in embedded.news_titles())
        return train, evaluation, "bbc-news-titles"
    if source.data == embedded.DIGITS:
        drawn, held_out = embedded.digits()
        return _digits(drawn), _digits(held_out), embedded.DIGITS
    path = Path(source.data).expanduser()
    name = source.task or name_of(source.data)
    if path.is_dir():
        train_file, evaluation_file = _files(path, source)
        if train_file is None and evaluation_file is None:
            train_images, evaluation_images = image_tables(path, [] if notes is None else notes)
            if train_images is not None:
                return train_images, evaluation_images, name
        if train_file is None:
            found = ", ".join(f.name for f in sorted(path.iterdir()) if is_readable(f)) or "no data file"
            raise InputError(
                f"{path} needs exactly one training file such as {_prefix(path, source)}train.jsonl (.jsonl, .csv, "
                f".txt, .parquet), or folders of images that are named after their classes, got {found}"
                + ("" if source.task else "; pass task to pick TASK_train.*")
            )
        return read_table(train_file), None if evaluation_file is None else read_table(evaluation_file), name
    if path.exists():
        return read_table(path), None, name
    train_split, evaluation_split = _hub(source)
    if train_split is None:
        raise InputError(
            f"the hub dataset {source.data} has no split 'train'; pass one that has, and this one as eval_data"
        )
    return train_split, evaluation_split, name


def evaluation_table(source: DataSource, notes: list[str]) -> Table:
    """All rows to evaluate on: a file whole, of a folder or a dataset its evaluation rows, else all that it has."""
    assert source.data is not None
    if source.data == embedded.DIGITS:
        return _digits(embedded.digits()[1])
    path = Path(source.data).expanduser()
    if path.is_dir():
        train_file, evaluation_file = _files(path, source)
        file = evaluation_file or train_file
        if file is None:
            train_images, evaluation_images = image_tables(path, notes)
            if (found := evaluation_images or train_images) is not None:
                if evaluation_images is None:
                    notes.append(f"{path} has no folder of evaluation images: all {len(found)} images are scored")
                return found
        if evaluation_file is None and train_file is not None:
            notes.append(f"{path} has no file of evaluation rows: all rows of {train_file.name} are scored")
        if file is None:
            raise InputError(
                f"{path} has no file of evaluation rows such as {_prefix(path, source)}validation.jsonl; pass the file "
                "itself"
            )
        return read_table(file)
    if path.exists():
        return read_table(path)
    train, evaluation = _hub(source)
    found = evaluation or train
    assert found is not None
    return found


def _files(folder: Path, source: DataSource) -> tuple[Path | None, Path | None]:
    """The training and the evaluation file of a folder; of the first None where there is not exactly one."""
    prefix = _prefix(folder, source)
    by_stem: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if is_readable(file) and file.name.startswith(prefix):
            by_stem.setdefault(file.name[len(prefix) :].split(".")[0], []).append(file)
    train = [file for stem, files in by_stem.items() if re.fullmatch(r"train\w*", stem) for file in files]
    wanted = [GLUE[source.task].evaluation_split] if source.task in GLUE else []
    evaluation = next((by_stem[word] for word in (*wanted, *_EVALUATION_WORDS) if word in by_stem), [])
    if len(evaluation) > 1:
        raise InputError(
            f"{folder} has the evaluation rows {len(evaluation)} times: {', '.join(f.name for f in evaluation)}; leave "
            "one of them there"
        )
    return train[0] if len(train) == 1 else None, evaluation[0] if evaluation else None


def _prefix(folder: Path, source: DataSource) -> str:
    wanted = f"{source.task}_"
    return wanted if source.task and any(f.name.startswith(wanted) and is_readable(f) for f in folder.iterdir()) else ""


def _hub(source: DataSource) -> tuple[Table | None, Table | None]:
    from datasets import load_dataset

    assert source.data is not None
    looks_like_path = (
        source.data.startswith((".", "/", "~")) or source.data.count("/") > 1 or is_readable(Path(source.data))
    )
    if looks_like_path or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source.data):
        raise InputError(f"no such file or folder: {source.data}")
    subset = source.subset or (source.task if source.data in ("glue", "nyu-mll/glue") else None)
    name = "nyu-mll/glue" if source.data == "glue" else source.data
    try:
        splits: Any = load_dataset(name, subset)
    except Exception as error:  # datasets raises a dozen types here, from offline to unknown configuration
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC):
            raise InputError(
                f"cannot write the cache of datasets ({error}); set HF_DATASETS_CACHE to a folder that is yours"
            ) from error
        reason = shortened(str(error) or type(error).__name__)
        raise InputError(f"{source.data!r} is neither a local file nor a readable hub dataset: {reason}") from error
    wanted = [GLUE[source.task].evaluation_split] if source.task in GLUE else []
    first = next((word for word in (*wanted, *_EVALUATION_WORDS) if word in splits), None)
    train, evaluation = (
        None if word is None or word not in splits else table_of_dataset(splits[word], f"hub: {name}, {word}")
        for word in ("train", first)
    )
    if train is None and evaluation is None:
        raise InputError(
            f"the hub dataset {name} has neither a split 'train' nor one to evaluate on: {', '.join(splits)}"
        )
    return train, evaluation


def name_of(data: str) -> str:
    name = Path(data).expanduser().resolve().name if Path(data).expanduser().exists() else data.split("/")[-1]
    return name.split(".")[0] or name


def _digits(rows: list[dict[str, Any]]) -> Table:
    columns = {"image": [{"bytes": r["image"], "path": None} for r in rows], "label": [str(r["label"]) for r in rows]}
    numbers, names = [r["row"] for r in rows], {"label": [str(digit) for digit in range(10)]}
    return Table("embedded: scikit-learn's digits", columns, numbers, names, image_columns=("image",))


def _titles(rows: list[dict[str, Any]]) -> Table:
    columns = {"text": [r["text"] for r in rows], "label": [embedded.TOPICS[r["label"]] for r in rows]}
    names = {"label": list(embedded.TOPICS)}
    return Table("embedded: titles of BBC News articles", columns, range(1, len(rows) + 1), names)
