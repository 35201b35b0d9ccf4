"""From a table to the rows of a task: texts, scores, and classes by their names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lrlora.data.formats import format_of
from lrlora.data.images import image_column
from lrlora.data.preferences import is_of_pairs
from lrlora.data.tables import Table, is_missing, shortened, texts
from lrlora.data.tasks import GLUE, IMAGES, TEXT_COLUMNS, Kind
from lrlora.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

    from lrlora.data.source import DataSource

_DECIMAL = re.compile(r"[+-]?\d+[.,]\d+")
_MANY_CLASSES = 50


def kind_of(table: Table, source: DataSource) -> Kind:
    """The kind of a task that nobody named: by its columns, and by its labels.

    Raises:
        InputError: labels that are scores, but written as text.
    """
    if source.kind is not None:
        return source.kind
    if source.task in GLUE:
        return GLUE[source.task].kind
    if source.text_columns is None and is_of_pairs(table):
        return "preference"
    if source.text_columns is None and source.image_column is None and format_of(table) is not None:
        return "causal"
    has_text = source.text_columns is not None or any(set(columns) <= table.columns.keys() for columns in TEXT_COLUMNS)
    if source.image_column is not None or (not has_text and image_column(table, None) is not None):
        return IMAGES
    if source.label_column not in table.columns or source.label_column in table.class_names:
        return "classification"
    values = _labels(table, source.label_column)
    if all(_is_number(v) for v in values):
        return "regression" if any(v != int(v) for v in values) else "classification"
    is_decimal = [isinstance(v, str) and _DECIMAL.fullmatch(v.strip()) is not None for v in values]
    if 2 * sum(is_decimal) > len(values):
        # the first that is none, or where all are the first
        position = 0 if all(is_decimal) else is_decimal.index(False)
        raise table.error(
            position,
            f"has the label {values[position]!r} in a column of scores; write scores as numbers with a point, and one "
            "in every row, or pass kind classification if they are names of classes",
        )
    return "classification"


def text_columns(table: Table, source: DataSource, notes: list[str]) -> tuple[str, ...]:
    """The one or two columns of text.

    Raises:
        InputError: none that is known, or not those that were asked for.
    """
    choices = [source.text_columns] if source.text_columns else []
    if source.task in GLUE and not choices:
        choices = [GLUE[source.task].columns]
    fitting = [columns for columns in choices or TEXT_COLUMNS if set(columns) <= table.columns.keys()]
    if not fitting:
        needed = " and ".join(choices[0]) if choices else "text, sentence, or a pair such as sentence1 and sentence2"
        raise InputError(
            f"{table.where}: no column of text ({needed}), got columns {', '.join(table.columns)}; pass text_columns"
            + _separator(table)
        )
    left = sorted({c for columns in fitting[1:] for c in columns} - set(fitting[0]))
    if left:
        notes.append(
            f"{table.where}: read as text: {' and '.join(fitting[0])}; not read: {', '.join(left)}; text_columns "
            "chooses others"
        )
    return fitting[0]


def scores(table: Table, column: str) -> list[float]:
    """The labels of a regression task.

    Raises:
        InputError: a label that is missing, no number, or not finite.
    """
    found = []
    for position, value in enumerate(_labels(table, column)):
        try:
            score = float(value) if not isinstance(value, bool) else math.nan
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise table.error(position, f"has {column!r} = {value!r}, needed a number such as 3.5")
        found.append(score)
    return found


def names_of_classes(table: Table, column: str) -> list[str]:
    """The name of the class of every row; a number's name is its digits.

    Raises:
        InputError: a label that is missing, a score, or negative.
    """
    return [_class_name(table, position, value) for position, value in enumerate(_labels(table, column))]


def classes_of(tables: Sequence[Table], names: Sequence[Sequence[str]], column: str, notes: list[str]) -> list[str]:
    """The classes of a task in the order of their numbers: as the training file declares them, or sorted by name.

    Args:
        tables: the training table, and the evaluation table where there is one.
        names: as `names_of_classes` gives them, of every row of both, before rows are drawn.
        column: of the labels.
        notes: gets what the user should know.

    Raises:
        InputError: names in one file and numbers in the other, or a class of the evaluation file that the training file
            does not have.
    """
    declared = tables[0].class_names.get(column)
    have = set(names[0])
    classes = declared or sorted(have, key=_by_number if all(n.isdigit() for n in have) else None)
    if len(tables) == 2:
        refuse_unknown_classes(tables[1], names[1], classes, f"the classes of {tables[0].where}")
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(_plain(name), []).append(name)
    for group in alike.values():
        if len(group) > 1:
            notes.append(
                f"{tables[0].where}: the classes {', '.join(map(repr, group))} differ only in white space or case"
            )
    if len(classes) > _MANY_CLASSES and 2 * len(classes) > len(names[0]):
        notes.append(
            f"{tables[0].where}: {len(names[0])} rows have {len(classes)} classes in {column!r}; if these are scores, "
            "pass kind regression, if they are numbers of rows, another label_column"
        )
    return classes


def refuse_unknown_classes(table: Table, names: Sequence[str], classes: Sequence[str], whose: str) -> None:
    """Refuse rows of a class that is not known; the rows need not have all classes.

    Raises:
        InputError: naming the first such row, and a class that it may mean.
    """
    known = set(classes)
    strange = next((position for position, name in enumerate(names) if name not in known), None)
    if strange is None:
        return
    name = names[strange]
    count = len(set(names) - known)
    digits = [n.isdigit() for n in (*known, name)]
    hint = next((f"; did you mean {c!r}?" for c in classes if _plain(c) == _plain(name)), "")
    if not hint and any(digits) and not all(digits):
        hint = "; which number means which name is not known: write the same names into both"
    others = f" ({count} such classes)" if count > 1 else ""
    listed = shortened(", ".join(map(repr, classes)))
    raise table.error(strange, f"is of class {name!r}{others}, which is none of {whose}: {listed}{hint}")


def labelled(table: Table, columns: tuple[str, ...], labels: Sequence[Any], notes: list[str]) -> Dataset:
    """The rows of a table with their texts, and labels as they are given.

    Raises:
        InputError: a row without text, or with something else in its place.
    """
    from datasets import Dataset

    fields: dict[str, Any] = {"label": list(labels)}
    for name, column in zip(("text", "text_pair"), columns, strict=False):
        fields[name] = texts(table, column, notes)
    return Dataset.from_dict({**fields, "row": list(table.numbers)})


def _labels(table: Table, column: str) -> list[Any]:
    """The labels as they are; of a file without types numbers where all are numbers."""
    if column not in table.columns:
        raise InputError(
            f"{table.where}: no column {column!r}, got columns {', '.join(table.columns)}; pass label_column"
            + _separator(table)
        )
    values = list(table.columns[column])
    for position, value in enumerate(values):
        if is_missing(table, value):
            raise table.error(position, f"has no {column!r}")
        if not isinstance(value, str | int | float):
            advice = "; one label a row is needed" if isinstance(value, list) else ""
            raise table.error(
                position, f"has a {type(value).__name__} in {column!r}, needed a class or a number{advice}"
            )
    if not table.is_text:
        return values
    # "007" is a name; 7 and 7.0 are numbers
    if all(re.fullmatch(r"[+-]?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", value.strip()) for value in values):
        return [float(value) for value in values]
    return values


def _class_name(table: Table, position: int, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    if not math.isfinite(value) or value != int(value) or value < 0:
        raise table.error(
            position,
            f"has the label {value!r}; classes must be names or whole numbers from 0 (-1 marks a row without a label "
            "on the hub); pass kind regression for scores",
        )
    return str(int(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _by_number(name: str) -> tuple[int, str]:
    return int(name), name


def _plain(name: str) -> str:
    return " ".join(name.split()).casefold()


def _separator(table: Table) -> str:
    """A hint where the whole header of a CSV was read as one column."""
    header = next(iter(table.columns), "")
    found = next((mark for mark in (";", "\t", "|") if mark in header), None)
    is_one = table.is_text and len(table.columns) == 1 and found is not None
    return f"; its columns seem to be separated by {found!r}, needed commas" if is_one else ""
