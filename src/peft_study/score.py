"""The seam between a study and what its tasks measure: one function per kind of task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lrlora.data import TaskData
from lrlora.training.labelled import labelled_logits
from lrlora.training.scoring import collator_of, metrics_of

Score = Callable[[Any, Any, TaskData, Any, int], dict[str, float]]


def score(model: Any, tokenizer: Any, task: TaskData, encoded: Any, batch_size: int = 32) -> dict[str, float]:
    """Measure a model on the evaluation rows of a task.

    Args:
        model: with or without an adapter.
        tokenizer: of the model.
        task: its `evaluation` rows are measured, its `kind` says how.
        encoded: the same rows, encoded.
        batch_size: rows at once.

    Returns:
        The task's metrics by name, and "loss": the mean loss of the task, without what a method adds for itself.
    """
    with evaluating(model):
        return SCORERS[task.kind](model, tokenizer, task, encoded, batch_size)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """A model in evaluation mode, without gradients; changed back to its mode."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _score_labels(model: Any, tokenizer: Any, task: TaskData, encoded: Any, batch_size: int) -> dict[str, float]:
    collate = collator_of(task, tokenizer)
    logits, order = [], []
    for numbers, batch in batches(encoded, collate, batch_size, model.device):
        batch.pop("labels")
        logits.append(model(**batch).logits.float().cpu())
        order += numbers
    outputs, labels = torch.cat(logits), torch.tensor(encoded["labels"])[order]
    if task.kind == "regression":
        loss = torch.nn.functional.mse_loss(outputs.squeeze(-1), labels.float())
    else:
        loss = torch.nn.functional.cross_entropy(outputs, labels)
    return {**metrics_of(task, outputs.numpy(), labels.numpy()), "loss": loss.item()}


def _score_texts(model: Any, tokenizer: Any, task: TaskData, encoded: Any, batch_size: int) -> dict[str, float]:
    collate = collator_of(task, tokenizer)
    total = tokens = 0.0
    for _, batch in batches(encoded, collate, batch_size, model.device):
        logits, labels, _ = labelled_logits(model, batch)
        total += torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum").item()
        tokens += len(labels)
    return {"loss": total / max(tokens, 1)}


def batches(encoded: Any, collate: Any, batch_size: int, device: torch.device):
    """Batches of rows of like length, the longest first, with the rows' numbers: padding costs as much as text."""
    columns = [name for name in encoded.column_names if name not in ("text", "text_pair")]
    lengths = [len(tokens) for tokens in encoded["input_ids"]]
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        part = encoded[numbers]
        rows = [{name: part[name][i] for name in columns} for i in range(len(numbers))]
        yield numbers, {name: value.to(device) for name, value in collate(rows).items()}


SCORERS: dict[str, Score] = {
    "classification": _score_labels,
    "regression": _score_labels,
    "causal": _score_texts,
}
"""By kind of task. A new kind of task is a line here."""
