"""The held-out rows of a search: some choose the size, the others report what it scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lrlora.data import TaskData, load_evaluation
from lrlora.data.encode import Say
from lrlora.errors import InputError
from lrlora.evaluation.measure import TaskMeasure
from lrlora.evaluation.score import encoded_for, score
from lrlora.export.compare import held_out
from lrlora.saved.adapter import AdapterFolder
from lrlora.saved.identity import digest_of_rows
from lrlora.training.config import TrainConfig

HALF, ALL = "half", "all"
FEWEST = 2


@dataclass(frozen=True)
class HeldOut:
    """Rows that choose and rows that report.

    Args:
        measure: how they are scored; its rows are those that report.
        choose: the rows that choose, as a task.
        said: where both are from, in words.
    """

    measure: TaskMeasure
    choose: TaskData
    said: str

    @property
    def report(self) -> TaskData:
        """The rows that report, as a task."""
        return self.measure.data

    @property
    def is_same(self) -> bool:
        """Whether the same rows choose and report."""
        return digest_of_rows(self.choose) == digest_of_rows(self.report)

    def inputs(self) -> dict[str, Any]:
        """What the numbers depend on."""
        measure, digests = self.measure, {"choose": digest_of_rows(self.choose), "report": digest_of_rows(self.report)}
        settings = {name: getattr(measure, name) for name in ("max_length", "template", "batch_size", "is_bf16")}
        return {"task": measure.task, "metric": measure.metric, "rows": digests, **settings}

    def scorer(self, task: TaskData, model: Any, tokenizer: Any) -> Callable[[Any], dict[str, float]]:
        """Encode rows once; the result scores models on them, as `lrlora evaluate` does."""
        measure = self.measure
        rows = encoded_for(model, tokenizer, task, measure.max_length, measure.template, measure.say)
        return lambda any_model: score(any_model, tokenizer, task, rows, measure.batch_size, measure.is_bf16)


def held_out_rows(saved: AdapterFolder, config: TrainConfig, choose_on: str, seed: int, say: Say) -> HeldOut:
    """Read the rows of a search.

    Args:
        saved: the adapter.
        config: settings that name the task, see `lrlora.export.compare.run_config`.
        choose_on: "half" of the held-out rows, drawn with `seed`, while the other half reports; "all" of them, which
            report as well; or a file, folder or hub dataset, whose rows choose while all held-out rows report.
        seed: of the draw.
        say: gets a line for what the user should know.

    Raises:
        InputError: too few rows to split; all that `load_evaluation` refuses.
    """
    measure = held_out(config, saved.kind, saved.class_names(), str(saved.folder), say)
    task = measure.data
    # what is trained on is no part of a search
    task = dataclasses.replace(task, train=task.train.select([]))
    if choose_on == HALF:
        rows, many = task.evaluation.shuffle(seed=seed), len(task.evaluation) // 2
        if many < FEWEST:
            raise InputError(
                f"{task.source} has {len(rows)} held-out rows, needed at least {2 * FEWEST} so that one half chooses "
                "and the other reports; pass --choose_on with rows that choose"
            )
        choose = dataclasses.replace(task, evaluation=rows.select(range(many)))
        task = dataclasses.replace(task, evaluation=rows.select(range(many, len(rows))))
        said = f"the two halves of the held-out rows, drawn with seed {seed}"
    elif choose_on == ALL:
        choose, said = task, "the held-out rows, all of which both choose and report"
    else:
        source = dataclasses.replace(config.data_source(), data=choose_on, kind=task.kind, eval_data=None)
        choose = dataclasses.replace(load_evaluation(source, task.kind, saved.class_names()), metrics=task.metrics)
        said = f"{choose_on} chooses, the held-out rows report"
    found = HeldOut(dataclasses.replace(measure, data=task), choose, said)
    if found.is_same:
        say(
            f"warning: the {len(choose.evaluation)} rows that choose are those that report: the number of the export "
            "is optimistic, since of many sizes one was taken that is good on these very rows; leave --choose_on out"
        )
    return found
