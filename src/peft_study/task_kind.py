"""What a study asks of a kind of task: its rows, how they are encoded and trained on, and how a model is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lrlora.data import TaskData
from lrlora.data.encode import Say
from peft_study.result import Phase
from peft_study.rows import Parts
from peft_study.spec import Arm, Study
from peft_study.task import Task


@dataclass(frozen=True)
class Trained:
    """A trained model of a cell, with what a kind of task needs to score it.

    Args:
        task, phase: of the cell.
        parts: the rows of the task.
        model, tokenizer: in memory; of images the image processor.
        encoded: the evaluation rows of the phase, as `TaskKind.encode` returned them.
        before: what `TaskKind.before` returned.
        is_bf16: whether it was trained in bfloat16, and is to be scored in it, as `lrlora train` does.
    """

    task: Task
    phase: Phase
    parts: Parts
    model: Any
    tokenizer: Any
    encoded: Any
    before: Mapping[str, float]
    is_bf16: bool

    @property
    def data(self) -> TaskData:
        """The rows of the phase."""
        return self.parts.of(self.phase)


@dataclass(frozen=True)
class TaskKind:
    """A kind of task. `peft_study.kinds` has one for every task of a study file.

    Args:
        splits: the rows of a task in three parts, always the same ones. Raises InputError where they cannot be read.
        further: by phase and name, what a model is also scored on; part of the fingerprint of a cell.
        reads: whether the rows of a task come from files or the hub.
        assumed: rows to train on and classes of a task whose data are not here, for estimates; None: not known.
        settings: what of a task's fields determines a result of a phase, apart from the rows.
        task_type: lrlora's word for the kind of base model, given the classes; None: a language model has none.
        tokens: of a row at most, given the config of the base, for estimates.
        encode: training and evaluation rows as the model reads them, given the seed of a cell; its last argument gets
            a line about rows that were cut.
        is_encoded_by_seed: whether the seed changes what `encode` returns.
        under_arm: the base model under an arm, given PEFT's word for the task and the steps; and the arm's config.
        before: what is measured of the base model, once for all arms; given the task, its rows, the base, its
            tokenizer, and whether to compute in bfloat16.
        score: name of the metric that counts, and all metrics by name.
        packages: modules that scoring imports, and that may not be installed.
        diverging_loses: whether a rate of the search that diverges has lost, and is no failure.
        tuned, measured: for a title: what the rates are chosen on, what the metric is of.
    """

    splits: Callable[[Study, Task], Parts]
    further: Callable[[Study, Task], Mapping[Phase, Mapping[str, Any]]]
    reads: Callable[[Task], bool]
    assumed: Callable[[Study, Task], tuple[int | None, int | None]]
    settings: Callable[[Task, Phase], dict[str, Any]]
    task_type: Callable[[int | None], str]
    tokens: Callable[[Study, Task, Any], int]
    encode: Callable[[Task, TaskData, Any, int, Say], tuple[Any, Any]]
    is_encoded_by_seed: bool
    under_arm: Callable[[Study, Arm, Any, str, int], tuple[Any, Any]]
    before: Callable[[Task, Parts, Any, Any, bool], dict[str, float]]
    score: Callable[[Trained], tuple[str, dict[str, float]]]
    packages: Callable[[Task], tuple[str, ...]]
    diverging_loses: bool
    tuned: str
    measured: str
