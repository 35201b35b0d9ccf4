"""Rows from a local file or folder, from the hub, or from the embedded sample, checked and brought into one shape."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from lrlora.data import embedded
from lrlora.data.tasks import GLUE, TEXT_COLUMNS, Kind, TaskData
from lrlora.errors import InputError

_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_EVALUATION_WORDS = ("validation", "valid", "dev", "eval", "test")


@dataclass(frozen=True)
class DataSource:
    """Where the rows of a task come from, and how to read them.

    Args:
        data: a file, a folder, the name of a hub dataset, or None for the embedded sample.
        task: name of the task; in a folder it picks TASK_train.* and TASK_dev.*; GLUE's names bring columns and
            metrics.
        subset: configuration of a hub dataset.
        kind: "classification", "regression" or "causal"; None reads it off the columns.
        text_columns: one or two columns of text; None reads them off the file.
        label_column: column of the label.
        train_rows, eval_rows: use at most so many, drawn with `seed`; None means all.
        seed: of that draw, and of the split where there is no evaluation file.
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


def load_task(source: DataSource) -> TaskData:
    """Read, check and shape the rows of a task.

    Raises:
        InputError: a file that is missing or not readable, a column or a label that is missing, naming file and row.
    """
    if source.data is None:
        train, evaluation = (Dataset.from_list(rows) for rows in embedded.news_titles())
        where, name = "embedded: titles of BBC News articles", "bbc-news-titles"
    elif Path(source.data).exists():
        train, evaluation, where = _from_disk(Path(source.data), source)
        name = source.task or Path(source.data).name.split(".")[0]
    else:
        train, evaluation, where = _from_hub(source)
        name = source.task or source.data.split("/")[-1]
    train, evaluation = (
        _at_most(train, source.train_rows, source.seed),
        _at_most(evaluation, source.eval_rows, source.seed),
    )
    kind = source.kind or _kind_of(train, source)
    if kind == "causal":
        train, evaluation = (_instructions(rows, where) for rows in (train, evaluation))
        return TaskData(name, kind, train, evaluation, [], (), where)
    labels = list(embedded.TOPICS) if source.data is None else _label_names(train, evaluation, kind, source, where)
    columns = _text_columns(train, source, where)
    train, evaluation = (_labelled(rows, columns, labels, kind, source, where) for rows in (train, evaluation))
    default = ("pearson", "spearman") if kind == "regression" else ("accuracy",)
    metrics = GLUE[source.task].metrics if source.task in GLUE and GLUE[source.task].kind == kind else default
    return TaskData(name, kind, train, evaluation, labels, metrics, where)


def _from_disk(path: Path, source: DataSource) -> tuple[Dataset, Dataset, str]:
    if path.is_file():
        rows = _read(path)
        return *_split(rows, source.seed), str(path)
    files = [f for f in sorted(path.iterdir()) if _reader_of(f)]
    prefix = f"{source.task}_" if source.task and any(f.name.startswith(f"{source.task}_") for f in files) else ""
    mine = {f.name[len(prefix) :].split(".")[0]: f for f in files if f.name.startswith(prefix)}
    train = [f for stem, f in mine.items() if re.fullmatch(r"train\w*", stem)]
    wanted = [GLUE[source.task].evaluation_split] if source.task in GLUE else []
    evaluation = [mine[w] for w in (*wanted, *_EVALUATION_WORDS) if w in mine]
    if len(train) != 1:
        found = ", ".join(f.name for f in files) or "no data file"
        example = f"{prefix or ''}train.jsonl"
        raise InputError(
            f"{path} needs exactly one training file such as {example} (.jsonl, .jsonl.gz, .csv, .parquet), got {found}"
            + ("" if source.task else "; pass --task to pick TASK_train.*")
        )
    if not evaluation:
        return *_split(_read(train[0]), source.seed), str(train[0])
    return _read(train[0]), _read(evaluation[0]), f"{train[0]}, {evaluation[0].name}"


def _from_hub(source: DataSource) -> tuple[Dataset, Dataset, str]:
    assert source.data is not None
    looks_like_path = (
        source.data.startswith((".", "/", "~")) or source.data.count("/") > 1 or _reader_of(Path(source.data))
    )
    if looks_like_path or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source.data):
        raise InputError(f"no such file or folder: {source.data}")
    subset = source.subset or (source.task if source.data in ("glue", "nyu-mll/glue") else None)
    name = "nyu-mll/glue" if source.data == "glue" else source.data
    try:
        splits = load_dataset(name, subset)
    except Exception as error:  # datasets raises a dozen types here, from offline to unknown configuration
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{source.data!r} is neither a local file nor a readable hub dataset: {reason}") from error
    wanted = [GLUE[source.task].evaluation_split] if source.task in GLUE else []
    evaluation = next((splits[w] for w in (*wanted, *_EVALUATION_WORDS[:3], "test") if w in splits), None)
    if "train" not in splits:
        raise InputError(f"the hub dataset {name} has no split 'train', got: {', '.join(map(str, splits))}")
    if evaluation is None:
        return *_split(splits["train"], source.seed), f"hub: {name}"
    return splits["train"], evaluation, f"hub: {name}"


def _reader_of(path: Path) -> str | None:
    return _READERS.get(path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix)


def _read(path: Path) -> Dataset:
    reader = _reader_of(path)
    if reader is None:
        raise InputError(f"cannot read {path}: needed .jsonl, .jsonl.gz, .json, .csv or .parquet")
    try:
        rows = load_dataset(reader, data_files=str(path), split="train")
    except Exception as error:  # datasets wraps the parser's error, whatever its type
        cause = error.__cause__ or error
        raise InputError(f"cannot read {path} as {reader}: {str(cause).splitlines()[0]}") from error
    assert isinstance(rows, Dataset)
    if len(rows) == 0:
        raise InputError(f"{path} has no rows")
    return rows


def _split(rows: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    if len(rows) < 10:
        raise InputError(f"only {len(rows)} rows and no evaluation file: at least 10 are needed to split some off")
    parts = rows.train_test_split(test_size=0.1, seed=seed)
    return parts["train"], parts["test"]


def _at_most(rows: Dataset, limit: int | None, seed: int) -> Dataset:
    if limit is None or limit >= len(rows):
        return rows
    return rows.shuffle(seed=seed).select(range(limit))


def _kind_of(rows: Dataset, source: DataSource) -> Kind:
    if source.task in GLUE:
        return GLUE[source.task].kind
    if {"instruction", "output"} <= set(rows.column_names):
        return "causal"
    if source.label_column in rows.column_names:
        values = [v for v in rows[source.label_column][:1000] if v is not None]
        if (
            values
            and all(isinstance(v, float) for v in values)
            and any(v != int(v) for v in values if math.isfinite(v))
        ):
            return "regression"
    return "classification"


def _text_columns(rows: Dataset, source: DataSource, where: str) -> tuple[str, ...]:
    have = rows.column_names
    choices = [source.text_columns] if source.text_columns else []
    if source.task in GLUE and not choices:
        choices = [GLUE[source.task].columns]
    for columns in choices or TEXT_COLUMNS:
        if set(columns) <= set(have):
            return columns
    needed = " and ".join(choices[0]) if choices else "text, sentence, or a pair such as sentence1 and sentence2"
    raise InputError(f"{where}: no column of text ({needed}), got columns {', '.join(have)}; pass --text_columns")


def _label_names(train: Dataset, evaluation: Dataset, kind: Kind, source: DataSource, where: str) -> list[str]:
    column = source.label_column
    for rows in (train, evaluation):
        if column not in rows.column_names:
            raise InputError(
                f"{where}: no column {column!r}, got columns {', '.join(rows.column_names)}; pass --label_column"
            )
        for number, value in enumerate(rows[column]):
            if value is None or (isinstance(value, float) and math.isnan(value)):
                raise InputError(f"{where}: row {number + 1} of {len(rows)} has no {column!r}: {_short(rows[number])}")
    if kind == "regression":
        return []
    feature = train.features[column]
    if hasattr(feature, "names"):
        return list(feature.names)
    values = set(train[column]) | set(evaluation[column])
    if all(isinstance(v, str) for v in values):
        return sorted(values)
    numbers = sorted(values)
    if any(v != int(v) for v in numbers) or numbers[0] < 0:
        raise InputError(
            f"{where}: classes must be names or whole numbers from 0, got {_short(numbers)}; "
            "pass --kind regression for scores"
        )
    return [str(i) for i in range(int(numbers[-1]) + 1)]


def _labelled(
    rows: Dataset, columns: tuple[str, ...], labels: list[str], kind: Kind, source: DataSource, where: str
) -> Dataset:
    column = source.label_column
    number_of = {name: number for number, name in enumerate(labels)}
    values = rows[column]
    if kind == "regression":
        numbers = [float(v) for v in values]
    else:
        numbers = [number_of[v] if isinstance(v, str) else int(v) for v in values]
    fields: dict[str, list[Any]] = {"label": numbers}
    for name, text_column in zip(("text", "text_pair"), columns, strict=False):
        fields[name] = list(rows[text_column])
        if None in fields[name]:
            raise InputError(f"{where}: row {fields[name].index(None) + 1} has no {text_column!r}")
    return Dataset.from_dict(fields)


def _instructions(rows: Dataset, where: str) -> Dataset:
    for column in ("instruction", "output"):
        if column not in rows.column_names:
            raise InputError(
                f"{where}: instruction data needs the columns 'instruction' and 'output' (and may have 'input'), "
                f"got {', '.join(rows.column_names)}"
            )
        if None in list(rows[column]):
            raise InputError(f"{where}: row {list(rows[column]).index(None) + 1} has no {column!r}")
    inputs = rows["input"] if "input" in rows.column_names else [""] * len(rows)
    return Dataset.from_dict(
        {
            "instruction": list(rows["instruction"]),
            "input": [text or "" for text in inputs],
            "answer": list(rows["output"]),
        }
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."
