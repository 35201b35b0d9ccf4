"""Tasks with the field `commonsense`: trained and tuned on instructions, scored on multiple-choice questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrlora.data.commonsense import load_commonsense
from lrlora.errors import InputError
from lrlora.evaluation.commonsense import Suite
from peft_study.held_out import HELD_OUT, score_held_out
from peft_study.result import Phase
from peft_study.rows import SPLIT_SEED
from peft_study.spec import Study, Task
from peft_study.task import settings_of
from peft_study.task_kind import Trained

_ROWS = "commonsense"


def _test_rows(study: Study, task: Task) -> Mapping[Phase, Mapping[str, Any]]:
    """The test rows of every commonsense task, for the final phase."""
    folder = _folder_of(study, task)
    rows = {name: load_commonsense(folder, name, task.commonsense_rows, SPLIT_SEED) for name in task.commonsense}
    return {"final": {_ROWS: rows}}


def _folder_of(study: Study, task: Task) -> str:
    if task.commonsense_data == "hub":
        return "hub"
    if study.data_root is None and task.commonsense_data is None:
        raise InputError(
            f"task {task.name!r} is measured on {', '.join(task.commonsense)}, but neither it nor the study says "
            "where their test rows are; pass --data_root FOLDER, or give the task commonsense_data: a folder or "
            '"hub"'
        )
    return str(Path(study.data_root or "").expanduser() / (task.commonsense_data or ""))


def _settings(task: Task, phase: Phase) -> dict[str, Any]:
    asked = {"how": task.how, "prompt": task.prompt} if phase == "final" else {}
    return {**settings_of(task), **asked}


def _score(trained: Trained) -> tuple[str, dict[str, float]]:
    """In the search the loss on held-out answers; in the final phase the mean accuracy as well, which counts."""
    metric, found = score_held_out(trained)
    if trained.phase == "search":
        return metric, found
    task = trained.task
    rows = trained.parts.further["final"][_ROWS]
    suite = Suite(rows, task.how, task.prompt, task.template, task.batch_size, trained.is_bf16)
    return suite.metric, {**found, **suite.score(trained.model, trained.tokenizer)}


COMMONSENSE = dataclasses.replace(
    HELD_OUT,
    further=_test_rows,
    settings=_settings,
    score=_score,
    packages=lambda task: ("lm_eval",) if task.how == "likelihood" else (),
)
"""As a causal task, but for these."""
