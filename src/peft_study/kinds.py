"""The kind of every task of a study: held-out rows, images, commonsense questions, or facts to be memorised."""

from __future__ import annotations

import dataclasses

from peft_study.commonsense import COMMONSENSE
from peft_study.facts import FACTS
from peft_study.held_out import HELD_OUT
from peft_study.images import CLASSIFIED_IMAGES
from peft_study.rows import Parts
from peft_study.spec import Study
from peft_study.task import Task
from peft_study.task_kind import TaskKind


def kind_of(task: Task) -> TaskKind:
    """The kind of a task. Besides the checks of a study file, this is the only place that asks which one it is."""
    if task.is_facts:
        return FACTS
    if task.is_images:
        return CLASSIFIED_IMAGES
    return COMMONSENSE if task.commonsense else HELD_OUT


def load_parts(study: Study, task: Task) -> Parts:
    """Read all rows of a task and split them, always in the same way.

    Raises:
        InputError: rows that are not there or not readable, or too few of them.
    """
    kind = kind_of(task)
    return dataclasses.replace(kind.splits(study, task), further=kind.further(study, task))
