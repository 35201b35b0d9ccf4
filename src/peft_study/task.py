"""A task of a study, checked. Kinds "facts" and "image-classification" have fields of their own, and lack others."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Literal

from lrlora.data import Kind
from lrlora.data.commonsense import COMMONSENSE
from lrlora.data.embedded import DIGITS
from lrlora.data.facts import PATTERN, check_pattern
from lrlora.data.images import BadImages
from lrlora.data.tasks import IMAGES
from lrlora.errors import InputError

EMBEDDED = "embedded"
"""Instead of a path: the titles of BBC News articles that come with the demo."""


@dataclass(frozen=True)
class Task:
    """One task of a study.

    Args:
        name: of the task in this study.
        data: file, folder, hub dataset, "embedded" or "embedded-digits"; relative to `data_root` where the study has
            one. None: the study's `data_root`.
        task: GLUE's name, or the prefix of the files of a folder; None: `name`, where GLUE has such a task.
        subset, kind, text_columns, label_column: as in `lrlora train`.
        train_rows: rows to train on, at most. None: all that validation leaves.
        validation_rows: rows split off the training file, which choose the learning rate. None: a tenth of it.
        test_rows: rows which give the result. None: all of the evaluation file; with test_from "training" a tenth.
        test_from: "evaluation", the evaluation file; or "training": split off the training file, for a study that
            chooses defaults and must not see the evaluation file.
        max_length: tokens of a row at most.
        template: how instructions are written.
        pooling: what the head of an encoder reads, as in `lrlora train`.
        epochs, max_steps, batch_size, gradient_accumulation: of every cell of this task.
        commonsense: of kind "causal": commonsense tasks whose test rows give the result, as the mean of their
            accuracies. Empty: the loss on held-out answers.
        commonsense_data: folder of their files, relative to `data_root`, or "hub"; None: `data_root`.
        commonsense_rows: test rows of each, at most. None: all.
        how, prompt: as in `lrlora.evaluation.score_commonsense`.
        facts: of kind "facts": how many facts the adapter must memorise. Without `data` they are made; of a file so
            many pairs are drawn, None: all.
        draw_seed: of that draw from all of the file; None: its first pairs, which are no sample of a sorted file.
        values: number of answers that a drawn fact can have, all equally likely.
        question_column, answer_column: columns of the file of pairs.
        pattern: how a pair becomes a text for a causal model; what comes after the question is to be memorised.
        forgetting: articles of unrelated English on which a causal model is scored before and after; None: none.
        image_column, image_size, augment, bad_images: of kind "image-classification", as in `lrlora train`.
    """

    name: str
    data: str | None = None
    task: str | None = None
    subset: str | None = None
    kind: Kind | Literal["facts"] | None = None
    text_columns: tuple[str, ...] | None = None
    label_column: str = "label"
    train_rows: int | None = None
    validation_rows: int | None = None
    test_rows: int | None = None
    test_from: Literal["evaluation", "training"] = "evaluation"
    max_length: int = 128
    template: Literal["auto", "chat", "plain"] = "auto"
    pooling: Literal["auto", "mean", "cls"] = "auto"
    epochs: float = 2.0
    max_steps: int = -1
    batch_size: int = 16
    gradient_accumulation: int = 1
    commonsense: tuple[str, ...] = ()
    commonsense_data: str | None = None
    commonsense_rows: int | None = None
    how: Literal["likelihood", "generation"] = "likelihood"
    prompt: Literal["question", "instruction"] = "instruction"
    facts: int | None = None
    draw_seed: int | None = 0
    values: int = 16
    question_column: str | None = None
    answer_column: str | None = None
    pattern: str = PATTERN
    forgetting: int | None = None
    image_column: str | None = None
    image_size: int | None = None
    augment: Literal["auto", "none", "crop", "crop-flip"] = "auto"
    bad_images: BadImages = "refuse"

    def __post_init__(self) -> None:
        check_name(self.name, "name of a task")
        unknown = [name for name in self.commonsense if name not in COMMONSENSE]
        if unknown:
            raise InputError(f"no commonsense task {unknown[0]!r}; there are: {', '.join(COMMONSENSE)}")
        for name in _COUNTS:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.kind == "causal" and self.pooling != "auto":
            raise InputError(f"pooling is of classification and regression, task {self.name!r} is causal; leave it out")
        if self.epochs <= 0 and self.max_steps < 1:
            raise InputError(f"epochs must be above 0, got {self.epochs}; or give max_steps")
        check_images(self)
        check_facts(self)

    @property
    def is_facts(self) -> bool:
        """Whether the adapter has to memorise facts."""
        return self.kind == "facts"

    @property
    def is_images(self) -> bool:
        """Whether its rows are images; the study file says so, before they are read."""
        return self.kind == IMAGES or (self.kind is None and self.data == DIGITS)


_COUNTS = (
    "train_rows", "validation_rows", "test_rows", "max_length", "batch_size", "gradient_accumulation", "image_size",
)  # fmt: skip
_OF_FACTS = ("facts", "draw_seed", "values", "question_column", "answer_column", "pattern", "forgetting")
_OF_COMMONSENSE = ("commonsense", "commonsense_data", "commonsense_rows", "how", "prompt")
_OF_OTHERS = (
    "text_columns", "label_column", "train_rows", "validation_rows", "test_rows", "test_from", "template",
    *_OF_COMMONSENSE,
)  # fmt: skip
OF_TEXT = ("text_columns", "max_length", "template", "pooling")
OF_IMAGES = ("image_column", "image_size", "augment", "bad_images")
_IN_THE_ROWS = ("data", "train_rows", "validation_rows", "test_rows", "test_from", *_OF_COMMONSENSE, *_OF_FACTS)
"""Fields that are no part of what a cell is known by: the digest of the rows says them."""


def settings_of(task: Task) -> dict[str, Any]:
    """The fields of a task that determine a result, apart from its rows; a new field must be left out at its default.

    The fingerprints of all results that exist depend on it.
    """
    left = (*_IN_THE_ROWS, *OF_IMAGES)  # those of images are added by their kind
    settings = {name: value for name, value in dataclasses.asdict(task).items() if name not in left}
    if task.pooling == "auto":
        settings.pop("pooling")  # studies from before it could be chosen
    return settings


def check_images(task: Task) -> None:
    """Refuse settings of images in other tasks, and settings of text in tasks of images.

    Raises:
        InputError: which, and what to do.
    """
    chosen = _chosen(task)
    if task.is_images:
        if strange := [name for name in (*OF_TEXT, *_OF_COMMONSENSE) if name in chosen]:
            raise InputError(f"{strange[0]} is of text, and task {task.name!r} is of images; leave it out")
    elif strange := [name for name in OF_IMAGES if name in chosen]:
        raise InputError(
            f"{strange[0]} is of images; give task {task.name!r} kind: {IMAGES}, or leave {strange[0]} out"
        )


def _chosen(task: Task) -> list[str]:
    """Names of the fields that differ from their defaults."""
    return [each.name for each in dataclasses.fields(task) if getattr(task, each.name) != each.default]


def check_facts(task: Task) -> None:
    """Refuse settings of facts that do not go together, and settings of one kind of task in another.

    Raises:
        InputError: which, and what to do.
    """
    chosen = _chosen(task)
    if not task.is_facts:
        if strange := [name for name in _OF_FACTS if name in chosen]:
            raise InputError(
                f"{strange[0]} is of tasks of kind facts; give task {task.name!r} kind: facts, or leave it out"
            )
        return
    if strange := [name for name in _OF_OTHERS if name in chosen]:
        raise InputError(
            f"{strange[0]} has no meaning for task {task.name!r} of kind facts: all facts are trained on, and the same "
            "ones are recalled; leave it out"
        )
    for name, least in (("facts", 1), ("values", 2), ("forgetting", 1)):
        if getattr(task, name) is not None and getattr(task, name) < least:
            raise InputError(f"{name} must be at least {least}, got {getattr(task, name)}")
    if (task.question_column is None) != (task.answer_column is None):
        raise InputError(f"task {task.name!r} needs both question_column and answer_column, or none of them")
    _check_source(task, is_drawn=task.question_column is None, has_values="values" in chosen)
    check_pattern(task.pattern)


def _check_source(task: Task, is_drawn: bool, has_values: bool) -> None:
    if is_drawn and task.data is not None:
        raise InputError(
            f"task {task.name!r} reads pairs of {task.data}: name their question_column and answer_column; or leave "
            "data out, and facts are drawn"
        )
    if is_drawn and task.facts is None:
        raise InputError(f"task {task.name!r} of kind facts needs facts, how many; or data, a file of pairs")
    if not is_drawn and task.data in (None, "embedded"):
        raise InputError(f"task {task.name!r} names columns of pairs, and no data that has them; give it data: a file")
    if is_drawn and task.draw_seed != 0:
        raise InputError(
            f"draw_seed draws pairs of a file, and task {task.name!r} has none: its facts depend on facts and values "
            "only; leave it out"
        )
    if not is_drawn and has_values:
        raise InputError(
            f"values is of drawn facts, and nobody knows how many answers the pairs of {task.data} could have had; "
            "leave it out"
        )


def check_name(name: str, what: str) -> None:
    """Raise InputError where a name cannot be part of a file's."""
    # names become parts of file names
    if not re.fullmatch(r"[\w.+-]+", name):
        raise InputError(f"the {what} must be of letters, digits and _ . + -, got {name!r}")
