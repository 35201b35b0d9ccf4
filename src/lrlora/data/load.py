"""The rows of a task from a local file or folder, from the hub, or from the embedded sample, in one shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lrlora.data import embedded
from lrlora.data.formats import rows_of
from lrlora.data.images import check_image_columns, rows_of_images
from lrlora.data.preferences import pairs_of
from lrlora.data.shape import (
    classes_of,
    kind_of,
    labelled,
    names_of_classes,
    refuse_unknown_classes,
    scores,
    text_columns,
)
from lrlora.data.source import DataSource, evaluation_table, name_of, training_tables
from lrlora.data.tables import Table, shortened
from lrlora.data.tasks import GLUE, IMAGES, LANGUAGE, MACRO_F1, Kind, TaskData
from lrlora.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset


def load_task(source: DataSource, labels: Sequence[str] | None = None) -> TaskData:
    """Read, check and shape the rows of a task.

    Every row of the files is checked, and the classes are gathered from all of them, before any is left out.

    Args:
        source: where the rows are.
        labels: names of the classes in the order of their numbers, of a model that has them; None: those of the rows.

    Raises:
        InputError: a file that is missing or not readable; a column, a label or a text that is missing or of another
            type, naming file and row; classes that do not fit together.

    Example:
        load_task(DataSource("reviews.jsonl")).labels
    """
    notes: list[str] = []
    train, evaluation, name = training_tables(source, notes)
    if source.eval_data is not None:
        evaluation = evaluation_table(dataclasses.replace(source, data=source.eval_data), notes)
    kind = kind_of(train, source)
    tables = [train] if evaluation is None else [train, evaluation]
    rows, classes, skipped = _shaped(tables, kind, source, labels, notes)
    where = ", ".join(table.where for table in tables)
    if evaluation is None:
        rows = [*_split(rows[0], source.seed)]
        where = f"{where} (a tenth of it held out, split seed {source.seed})"
    used = [
        _at_most(part, most, source.seed)
        for part, most in zip(rows, (source.train_rows, source.eval_rows), strict=True)
    ]
    _check_variety(used[0], kind, classes, notes)
    _say_what_is_in_both(used[0], used[1], kind, tables[-1].where, notes)
    task = _task(name, kind, used[0], used[1], classes, source, where, (train.where, tables[-1].where), notes)
    return dataclasses.replace(task, skipped=skipped)


def load_evaluation(source: DataSource, kind: Kind | None, labels: Sequence[str] | None) -> TaskData:
    """Read rows to evaluate a trained model on: all rows of a file, or the evaluation rows of a folder or dataset.

    Args:
        source: where the rows are; its `eval_rows` limits them.
        kind: of the model; None reads it off the rows.
        labels: names of the model's classes; the rows may have some of them, and no others.

    Returns:
        A task without training rows.

    Raises:
        InputError: as `load_task`.

    Example:
        load_evaluation(DataSource("test.jsonl"), "classification", ["neg", "pos"])
    """
    notes: list[str] = []
    table = evaluation_table(source, notes)
    kind = kind or kind_of(table, source)
    rows, classes, skipped = _shaped([table], kind, source, labels, notes)
    used = _at_most(rows[0], source.eval_rows, source.seed)
    name = source.task or name_of(source.data or "")
    files = table.where, table.where
    task = _task(name, kind, used.select([]), used, classes, source, table.where, files, notes)
    return dataclasses.replace(task, skipped=skipped)


def _shaped(
    tables: Sequence[Table], kind: Kind, source: DataSource, labels: Sequence[str] | None, notes: list[str]
) -> tuple[list[Dataset], list[str], int]:
    """The rows of tables, the names of the classes, and how many images were left out."""
    if kind == "causal":
        return [rows_of(table, source.text_columns, notes) for table in tables], [], 0
    if kind == "preference":
        return [pairs_of(table, notes) for table in tables], [], 0
    if kind == IMAGES:
        check_image_columns(tables, source.image_column)
        classes, numbers = _numbered(tables, source, labels, notes)
        made, skipped = rows_of_images(tables, numbers, source.image_column, source.bad_images, notes)
        return made, classes, skipped
    columns = text_columns(tables[0], source, notes)
    for table in tables[1:]:
        missing = [column for column in columns if column not in table.columns]
        if missing:
            raise InputError(
                f"{table.where}: no column {missing[0]!r}, which {tables[0].where} has; got columns "
                f"{', '.join(table.columns)}"
            )
    if kind == "regression":
        values: list[Any] = [scores(table, source.label_column) for table in tables]
        return [labelled(t, columns, v, notes) for t, v in zip(tables, values, strict=True)], [], 0
    classes, numbers = _numbered(tables, source, labels, notes)
    return [labelled(t, columns, n, notes) for t, n in zip(tables, numbers, strict=True)], classes, 0


def _numbered(
    tables: Sequence[Table], source: DataSource, labels: Sequence[str] | None, notes: list[str]
) -> tuple[list[str], list[list[int]]]:
    """The names of the classes, and for each table the numbers of its rows' classes."""
    names = [names_of_classes(table, source.label_column) for table in tables]
    if labels is None:
        classes = classes_of(tables, names, source.label_column, notes)
    else:
        classes = list(labels)
        for table, of_rows in zip(tables, names, strict=True):
            refuse_unknown_classes(table, of_rows, classes, "the classes that the model knows")
    number_of = {name: number for number, name in enumerate(classes)}
    return classes, [[number_of[name] for name in of_rows] for of_rows in names]


def _task(
    name: str, kind: Kind, train: Dataset, evaluation: Dataset, labels: list[str], source: DataSource, where: str,
    files: tuple[str, str], notes: list[str],
) -> TaskData:  # fmt: skip
    if kind in LANGUAGE:
        metrics = ("accuracy", "margin") if kind == "preference" else ()
        said = tuple(dict.fromkeys(notes))
        return TaskData(name, kind, train, evaluation, [], metrics, where, files=files, notes=said)
    default = ("pearson", "spearman") if kind == "regression" else ("accuracy",)
    known = GLUE[source.task] if source.task in GLUE and GLUE[source.task].kind == kind else None
    metrics = known.metrics if known else default
    if kind == IMAGES or (kind == "classification" and len(labels) > 2):
        metrics = (*metrics, MACRO_F1)
    positive = 1
    if known and "f1" in metrics:
        named = next((n for n in (known.positive, "1") if n in labels), None)
        if named is None:
            raise InputError(
                f"{where}: F1 of {name} is about the class {known.positive!r} (or 1), got the classes "
                f"{', '.join(labels)}; name them so, or leave task out"
            )
        positive = labels.index(named)
    size = embedded.DIGITS_SIZE if source.data == embedded.DIGITS else None
    said = tuple(dict.fromkeys(notes))
    return TaskData(name, kind, train, evaluation, labels, metrics, where, positive, files, said, image_size=size)


def _split(rows: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    if len(rows) < 10:
        raise InputError(f"only {len(rows)} rows and no evaluation file: at least 10 are needed to split some off")
    parts = rows.train_test_split(test_size=0.1, seed=seed)
    return parts["train"], parts["test"]


def _at_most(rows: Dataset, limit: int | None, seed: int) -> Dataset:
    if limit is None or limit >= len(rows):
        return rows
    return rows.shuffle(seed=seed).select(range(limit))


def _check_variety(train: Dataset, kind: Kind, classes: Sequence[str], notes: list[str]) -> None:
    """Refuse training rows that have only one label, and name the classes that none of them has.

    Raises:
        InputError: there is nothing to learn.
    """
    if kind in LANGUAGE:
        return
    present = set(train["label"])
    if len(present) == 1:
        label = present.pop()
        raise InputError(
            f"all {len(train)} training rows have the label {classes[label] if classes else label!r}: there is nothing "
            "to learn; pass other rows, or more of them"
        )
    absent = [name for number, name in enumerate(classes) if number not in present]
    if absent:
        notes.append(
            f"no training row is of {len(absent)} of the {len(classes)} classes: {shortened(', '.join(absent))}"
        )


def _say_what_is_in_both(train: Dataset, evaluation: Dataset, kind: Kind, where: str, notes: list[str]) -> None:
    """Count the evaluation rows that are among the training rows, label or not; images by their bytes."""
    columns = [name for name in train.column_names if name not in ("label", "row")] if kind != IMAGES else ["digest"]
    learned = set(_contents(train, columns))
    both = [position for position, content in enumerate(_contents(evaluation, columns)) if content in learned]
    if both:
        row = evaluation[both[0]]
        first = row["file"] if kind == IMAGES and row["file"] else f"row {row['row']} of {where}"
        notes.append(
            f"{len(both)} of {len(evaluation)} evaluation rows are training rows as well, the first is {first}: "
            "what is learned by heart raises the metric; take such rows out of one of the two"
        )


def _contents(rows: Dataset, columns: list[str]) -> Iterator[int]:
    batches: Any = rows.select_columns(columns).iter(1000)
    for batch in batches:
        # as numbers: the text of a large file would be in memory twice
        yield from (hash(repr(content)) for content in zip(*batch.values(), strict=True))
