"""The accuracy of a model on a commonsense task, in the two ways that the literature has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lrlora.data import Kind
from lrlora.data.commonsense import COMMONSENSE, load_commonsense
from lrlora.data.encode import Template
from lrlora.errors import InputError
from lrlora.evaluation.generation import score_generation
from lrlora.evaluation.likelihood import Prompt, score_likelihood

How = Literal["likelihood", "generation"]


def score_commonsense(
    model: Any,
    tokenizer: Any,
    task: str,
    rows: list[dict[str, Any]],
    how: How = "likelihood",
    *,
    batch_size: int = 8,
    prompt: Prompt = "question",
    template: Template = "auto",
    is_bf16: bool = False,
) -> dict[str, float]:
    """Accuracy on the rows of a task, by likelihood of the choices or by generation.

    The model is left as it was: training or not, its padding side, its random numbers.

    Args:
        model: a causal model of transformers or PEFT, in memory.
        tokenizer: of the model.
        task: a name of `lrlora.data.commonsense.COMMONSENSE`.
        rows: as `lrlora.data.commonsense.load_commonsense` returns them, all of this task.
        how: "likelihood" takes the choice that the model finds most likely; "generation" lets it write, and reads
            the first answer word.
        batch_size: sequences at once, at least 1.
        prompt: for "likelihood" only: "question" asks as lm-eval does and compares the choices themselves;
            "instruction" asks as in training and compares "the correct answer is X".
        template: of the instruction, as in `lrlora train`.
        is_bf16: compute in bfloat16, as a training in that precision does.

    Returns:
        "acc" and "rows"; for "likelihood" also "acc_stderr", "choice_loss" (nats a row, see `ChoiceScores`), and
        "acc_norm" where lm-eval has it for the task; for "generation" also "answered", the fraction of rows with an
        answer word.

    Raises:
        InputError: an unknown task or way, no rows, rows of another task, or lm-eval is not installed.

    Example:
        rows = load_commonsense("data", "arc_c", rows=100)
        score_commonsense(model, tokenizer, "arc_c", rows)["acc"]
    """
    if task not in COMMONSENSE:
        raise InputError(f"no commonsense task {task!r}; there are: {', '.join(COMMONSENSE)}")
    if not rows:
        raise InputError(f"no rows of {task} to score; pass at least one")
    others = {row["task"] for row in rows} - {task}
    if others:
        raise InputError(f"rows of {', '.join(sorted(others))} among those of {task}; score each task by itself")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    if how == "generation":
        with torch.autocast(model.device.type, torch.bfloat16, enabled=is_bf16):
            return score_generation(model, tokenizer, task, rows, batch_size, template=template)
    if how == "likelihood":
        return score_likelihood(model, tokenizer, task, rows, batch_size, prompt, template, is_bf16).as_dict()
    raise InputError(f"how must be 'likelihood' or 'generation', got {how!r}")


@dataclass(frozen=True)
class Suite:
    """Commonsense tasks, their rows, and how they are scored; a `lrlora.evaluation.measure.Measure`.

    Args:
        rows: test rows by task, as `load_commonsense` returns them.
        how, prompt, template, batch_size, is_bf16: as in `score_commonsense`.
    """

    rows: Mapping[str, list[dict[str, Any]]]
    how: How = "likelihood"
    prompt: Prompt = "instruction"
    template: Template = "auto"
    batch_size: int = 8
    is_bf16: bool = False

    @property
    def task(self) -> str:
        """Names of the tasks."""
        return ", ".join(self.rows)

    @property
    def source(self) -> str:
        """The way in which they are asked."""
        return self.how

    @property
    def kind(self) -> Kind:
        """The kind of model that they take."""
        return "causal"

    @property
    def metric(self) -> str:
        """The mean of their accuracies."""
        return "accuracy"

    @property
    def count(self) -> int:
        """How many rows they have together."""
        return sum(map(len, self.rows.values()))

    def score(self, model: Any, tokenizer: Any) -> dict[str, float]:
        """The accuracy of a model on every task, and their mean.

        Returns:
            "accuracy", the mean over the tasks, and what each measures, such as "arc_c acc".

        Raises:
            InputError: as `score_commonsense`.
        """
        found: dict[str, float] = {}
        for name, rows in self.rows.items():
            scores = score_commonsense(
                model,
                tokenizer,
                name,
                rows,
                self.how,
                batch_size=self.batch_size,
                prompt=self.prompt,
                template=self.template,
                is_bf16=self.is_bf16,
            )
            found |= {f"{name} {metric}": value for metric, value in scores.items() if metric != "rows"}
        return {"accuracy": sum(found[f"{name} acc"] for name in self.rows) / len(self.rows), **found}


def load_suite(data: str, tasks: tuple[str, ...], rows: int | None = None, **fields: Any) -> Suite:
    """The suite of some tasks.

    Args:
        data: folder of the tasks' test files, or "hub".
        tasks: names of `lrlora.data.commonsense.COMMONSENSE`.
        rows: of each task, at most; the same ones every time.
        fields: of `Suite`.

    Raises:
        InputError: as `load_commonsense`.

    Example:
        load_suite("data/commonsense", ("arc_c", "obqa"), rows=100).score(model, tokenizer)["accuracy"]
    """
    return Suite({name: load_commonsense(data, name, rows) for name in tasks}, **fields)
