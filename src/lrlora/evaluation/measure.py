"""What models are measured by: the rows of a task, and the numbers that a model gets on them. One class per kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from lrlora.data import Kind, TaskData
from lrlora.data.encode import Say, Template
from lrlora.evaluation.score import BATCH, score_task


class Measure(Protocol):
    """What several models are measured by: `TaskMeasure` here, `lrlora.evaluation.commonsense.Suite`."""

    @property
    def task(self) -> str:
        """Name of the task."""
        ...

    @property
    def source(self) -> str:
        """Where its rows came from, or how they are asked."""
        ...

    @property
    def kind(self) -> Kind:
        """The kind of model that it takes."""
        ...

    @property
    def metric(self) -> str:
        """The metric to look at."""
        ...

    @property
    def count(self) -> int:
        """How many rows are scored."""
        ...

    def score(self, model: Any, tokenizer: Any) -> dict[str, float]:
        """All metrics of a model by name."""
        ...


@dataclass(frozen=True)
class TaskMeasure:
    """The evaluation rows of a task of classification, regression or causal language modelling.

    Args:
        data: the task, read.
        max_length, template, batch_size, is_bf16, say: as in `score_task`.
    """

    data: TaskData
    max_length: int | None = None
    template: Template = "auto"
    batch_size: int = BATCH
    is_bf16: bool = False
    say: Say = lambda line: None

    @property
    def task(self) -> str:
        """As `Measure.task`."""
        return self.data.name

    @property
    def source(self) -> str:
        """As `Measure.source`."""
        return self.data.source

    @property
    def kind(self) -> Kind:
        """As `Measure.kind`."""
        return self.data.kind

    @property
    def metric(self) -> str:
        """As `Measure.metric`: the first of the task, or the loss where it has none."""
        return self.data.main_metric

    @property
    def count(self) -> int:
        """As `Measure.count`."""
        return len(self.data.evaluation)

    def score(self, model: Any, tokenizer: Any) -> dict[str, float]:
        """As `Measure.score`."""
        settings = (self.max_length, self.template, self.batch_size, self.is_bf16, self.say)
        return score_task(model, tokenizer, self.data, *settings)
