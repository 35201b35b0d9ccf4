"""Tasks of kind "classification", "regression" and "causal": a model is scored on rows that it was not trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lrlora.data import GLUE, DataSource, TaskData
from lrlora.data.encode import Say, encode
from lrlora.data.tasks import IMAGES
from lrlora.errors import InputError
from lrlora.evaluation.score import score
from lrlora.training.heads import load_task_for
from peft_study.arms import adapted, adapter_config
from peft_study.result import Phase
from peft_study.rows import SPLIT_SEED, Parts
from peft_study.spec import Arm, Study, Task
from peft_study.task import settings_of
from peft_study.task_kind import TaskKind, Trained

if TYPE_CHECKING:
    from datasets import Dataset

GLUE_ROWS = {
    "cola": 8551, "sst2": 67349, "mrpc": 3668, "qqp": 363846, "stsb": 5749, "mnli": 392702, "qnli": 104743,
    "rte": 2490, "wnli": 635,
}  # fmt: skip
"""Rows of GLUE's training files."""


def splits(study: Study, task: Task) -> Parts:
    """The training file in two or three parts, and the evaluation file.

    The validation rows are split off the training file. Those that give the result are the labelled evaluation file's,
    or are split off the training file where the task says so.

    Raises:
        InputError: rows that are not there or not readable, or too few of them.
    """
    is_held_out = task.test_from == "training"
    sizes = (task.train_rows, task.validation_rows, task.test_rows if is_held_out else 0)
    source = _source(study, task, None if None in sizes else sum(size or 0 for size in sizes))
    whole = load_task_for(study.model, source)
    if whole.kind == IMAGES:
        raise InputError(f"the rows of task {task.name!r} are images; give it kind: {IMAGES}")
    return in_parts(task, whole, whole.train.shuffle(seed=SPLIT_SEED))


def in_parts(task: Task, whole: TaskData, shuffled: Dataset) -> Parts:
    """Split rows of the training file: first those for validation, then those to train on, at the end those to test on.

    Args:
        task: how many of each.
        whole: the task, with its evaluation file.
        shuffled: all rows of the training file.

    Raises:
        InputError: too few rows.
    """
    is_held_out, many = task.test_from == "training", len(shuffled)
    validation = task.validation_rows or max(1, many // 10)
    test = (task.test_rows or max(1, many // 10)) if is_held_out else 0
    train = min(task.train_rows or many, many - validation - test)
    if train < 1:
        takes = f"validation_rows takes {validation} of them" + f" and test_rows {test}" * is_held_out
        raise InputError(f"task {task.name!r} has {many} rows to train on, and {takes}; give it fewer")
    rows = shuffled.select(range(validation, validation + train))
    final = dataclasses.replace(whole, train=rows)
    if is_held_out:
        final = dataclasses.replace(final, evaluation=shuffled.select(range(many - test, many)))
    return Parts(dataclasses.replace(whole, train=rows, evaluation=shuffled.select(range(validation))), final)


def _source(study: Study, task: Task, train_rows: int | None) -> DataSource:
    assert task.kind not in ("facts", IMAGES)
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


def _nothing_further(study: Study, task: Task) -> Mapping[Phase, Mapping[str, Any]]:
    return {}


def _assumed(study: Study, task: Task) -> tuple[int | None, int | None]:
    name = task.task or task.name
    kind = task.kind or (GLUE[name].kind if name in GLUE else "classification")
    classes = {"classification": 3 if name == "mnli" else 2, "regression": 1}.get(kind)
    return _rows_without_data(study, task), classes


def _rows_without_data(study: Study, task: Task) -> int | None:
    whole = GLUE_ROWS.get(task.task or task.name)
    if whole is not None:
        held_out = (task.test_rows or whole // 10) if task.test_from == "training" else 0
        left = whole - (task.validation_rows or whole // 10) - held_out
        return min(task.train_rows or left, left)
    if task.train_rows is None and task.max_steps < 1:
        return len(splits(study, task).search.train)
    return task.train_rows


def task_type_of(classes: int | None) -> str:
    """PEFT's word for a task of text: a head of so many classes, or none for language models."""
    return "CAUSAL_LM" if classes is None else "SEQ_CLS"


def _encode(task: Task, data: TaskData, tokenizer: Any, seed: int, say: Say) -> tuple[Any, Any]:
    return encode(data, tokenizer, task.max_length, task.template, say)


def _under_arm(study: Study, arm: Arm, base: Any, task_type: str, steps: int) -> tuple[Any, Any]:
    config = adapter_config(study, arm, task_type, steps)
    return adapted(base, config), config


def score_held_out(trained: Trained) -> tuple[str, dict[str, float]]:
    """The task's first metric, or the loss where it has none; all metrics on the evaluation rows of the phase."""
    task, data = trained.task, trained.data
    found = score(trained.model, trained.tokenizer, data, trained.encoded, task.batch_size, trained.is_bf16)
    return data.main_metric, found


HELD_OUT = TaskKind(
    splits=splits,
    further=_nothing_further,
    reads=lambda task: True,
    assumed=_assumed,
    settings=lambda task, phase: settings_of(task),
    task_type=task_type_of,
    tokens=lambda study, task, config: task.max_length,
    encode=_encode,
    is_encoded_by_seed=False,
    under_arm=_under_arm,
    before=lambda *_: {},
    score=score_held_out,
    packages=lambda task: (),
    diverging_loses=False,
    tuned="rates chosen on validation rows",
    measured="on test rows",
)
