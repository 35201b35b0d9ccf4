"""The rows of a task in three parts: what trains, what chooses the learning rate, what gives the result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from lrlora.data import GLUE, DataSource, TaskData
from lrlora.data.commonsense import load_commonsense
from lrlora.data.embedded import news_articles
from lrlora.errors import InputError
from lrlora.training.heads import load_task_for
from peft_study.facts import load_facts
from peft_study.spec import Study, Task

SPLIT_SEED = 0
"""Of every draw and split of rows: they are the same whatever the seed of a cell."""


@dataclass(frozen=True)
class Parts:
    """A task twice, with the same rows to train on.

    Args:
        search: its evaluation rows were split off the training file; the learning rate is chosen on them.
        final: its evaluation rows are the labelled evaluation file's, or were split off the training file where the
            task says so; no choice is made on them.
        commonsense: test rows by commonsense task, for the final phase; empty where the task names none.
        unrelated: texts that have to do with no fact, on which forgetting is measured; empty where no task asks.
    """

    search: TaskData
    final: TaskData
    commonsense: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    unrelated: list[str] = field(default_factory=list)

    def of(self, phase: str) -> TaskData:
        """The rows of a phase, "search" or "final"."""
        return self.search if phase == "search" else self.final


def load_parts(study: Study, task: Task) -> Parts:
    """Read the rows of a task and split them, always in the same way.

    Raises:
        InputError: rows that are not there or not readable, or too few of them.
    """
    return dataclasses.replace(
        load_splits(study, task),
        commonsense={
            name: load_commonsense(study.commonsense_data_of(task), name, task.commonsense_rows, SPLIT_SEED)
            for name in task.commonsense
        },
        unrelated=news_articles(task.forgetting) if task.forgetting is not None else [],
    )


def load_splits(study: Study, task: Task) -> Parts:
    """As `load_parts`, without the rows of commonsense tasks and unrelated texts; of facts both phases have all."""
    if task.is_facts:
        facts = load_facts(study, task)
        return Parts(facts, facts)
    is_held_out = task.test_from == "training"
    sizes = (task.train_rows, task.validation_rows, task.test_rows if is_held_out else 0)
    source = _source(study, task, None if None in sizes else sum(size or 0 for size in sizes))
    whole = load_task_for(study.model, source)
    many = len(whole.train)
    validation = task.validation_rows or max(1, many // 10)
    test = (task.test_rows or max(1, many // 10)) if is_held_out else 0
    train = min(task.train_rows or many, many - validation - test)
    if train < 1:
        takes = f"validation_rows takes {validation} of them" + f" and test_rows {test}" * is_held_out
        raise InputError(f"task {task.name!r} has {many} rows to train on, and {takes}; give it fewer")
    shuffled = whole.train.shuffle(seed=SPLIT_SEED)
    rows = shuffled.select(range(validation, validation + train))
    final = dataclasses.replace(whole, train=rows)
    if is_held_out:
        final = dataclasses.replace(final, evaluation=shuffled.select(range(many - test, many)))
    return Parts(dataclasses.replace(whole, train=rows, evaluation=shuffled.select(range(validation))), final)


def _source(study: Study, task: Task, train_rows: int | None) -> DataSource:
    assert task.kind != "facts"
    name = task.task or (task.name if task.name in GLUE else None)
    return DataSource(
        data=study.data_of(task),
        task=name,
        subset=task.subset,
        kind=task.kind,
        text_columns=task.text_columns,
        label_column=task.label_column,
        train_rows=train_rows,
        eval_rows=None if task.test_from == "training" else task.test_rows,
        seed=SPLIT_SEED,
    )


def fingerprint(**parts: Any) -> str:
    """The identity of a cell: a hash of everything that determines its result, but for versions and hardware."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]
