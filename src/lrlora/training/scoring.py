"""How a task is scored with transformers.Trainer: the same in training and in `lrlora evaluate`."""

from __future__ import annotations

from typing import Any

import numpy
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

from lrlora.data import TaskData
from lrlora.data.encode import IGNORED
from lrlora.data.tasks import compute_metrics


def scoring_parts(task: TaskData, tokenizer: Any) -> dict[str, Any]:
    """The arguments of a Trainer that decide how a task's rows are batched and scored."""
    return {
        "data_collator": collator_of(task, tokenizer),
        "processing_class": tokenizer,
        "compute_metrics": None if task.kind == "causal" else lambda outputs: _metrics_of(task, outputs),
    }


def collator_of(task: TaskData, tokenizer: Any) -> Any:
    """What makes a batch of encoded rows of a task."""
    if task.kind == "causal":
        return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
    return DataCollatorWithPadding(tokenizer)


def metrics_of(task: TaskData, scores: Any, labels: Any) -> dict[str, float]:
    """The metrics of a task from what a model's head gives, [rows, classes] or [rows, 1], and the labels [rows]."""
    predictions = scores.squeeze(-1) if task.kind == "regression" else numpy.argmax(scores, axis=-1)
    return compute_metrics(task.metrics, predictions, labels, task.positive)


def results_of(evaluated: dict[str, float]) -> dict[str, float]:
    """What `Trainer.evaluate` found, without its prefix and its timings."""
    return {key.removeprefix("eval_"): value for key, value in evaluated.items() if _is_result(key)}


def _metrics_of(task: TaskData, outputs: Any) -> dict[str, float]:
    scores = outputs.predictions[0] if isinstance(outputs.predictions, tuple) else outputs.predictions
    return metrics_of(task, scores, outputs.label_ids)


def _is_result(key: str) -> bool:
    return key.startswith("eval_") and not key.endswith(("_per_second", "_runtime", "_time"))
