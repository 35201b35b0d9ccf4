"""The score of a model on a task, computed in the same way for a run, an evaluation, an export and a study."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import distributed
from torch.nn.functional import cross_entropy, logsigmoid, mse_loss
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

from lrlora.data import TaskData
from lrlora.data.encode import IGNORED, Say, Template, encode_rows
from lrlora.data.length import length_of_rows
from lrlora.data.tasks import IMAGES, LANGUAGE, compute_metrics
from lrlora.errors import InputError
from lrlora.evaluation.labelled import labelled_logits
from lrlora.saved.processor import forward_arguments
from lrlora.saved.tokens import settle_padding

BATCH = 32
"""Rows at once, where nobody says."""
BETA = 0.1
"""Of the loss of preference pairs, as where trl's DPO is given none."""
Outputs = dict[int, Any]
"""What a model gives for a row, by the row's number."""


def score(
    model: Any, tokenizer: Any, task: TaskData, encoded: Any, batch_size: int = BATCH, is_bf16: bool = False,
    kept: Outputs | None = None,
) -> dict[str, float]:  # fmt: skip
    """Measure a model on the evaluation rows of a task.

    The number depends only on the model, the rows and `batch_size`: of several processes each one scores a part of the
    same batches, and all of them return the result of all rows.

    Args:
        model: with or without an adapter; it is left in the mode that it was in.
        tokenizer: of the model, or its image processor.
        task: its `kind` says how its rows are measured.
        encoded: its `evaluation` rows, encoded.
        batch_size: rows at once.
        is_bf16: compute in bfloat16, as a training in that precision does.
        kept: gets what the model gives for every row.

    Returns:
        The task's metrics by name, and "loss": cross entropy in nats a row (classification), squared error (regression)
        or nats a token (causal), as a mean over all rows or tokens, without a method's own penalty terms. Of preference
        pairs "margin" is the mean over the pairs of m, by how many nats the adapter raises the chosen answer above the
        rejected one over what the base says; "accuracy" is the fraction of pairs with m > 0, and "loss" the mean of
        -log sigmoid(m / 10), as in DPO with beta 0.1.
    """
    outputs, metrics = SCORERS[task.kind]
    found: Outputs = {}
    rank, many = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    with evaluating(model, is_bf16):
        for rows, batch in batches(encoded, collator_of(task, tokenizer, model), batch_size, model.device, rank, many):
            found |= zip(rows, outputs(model, batch), strict=True)
    if many > 1:
        parts: list[Any] = [None] * many
        distributed.all_gather_object(parts, found)
        found = {number: output for part in parts for number, output in part.items()}
    if kept is not None:
        kept.update(found)
    return metrics(task, [found[number] for number in range(len(encoded))], encoded)


def score_task(
    model: Any,
    tokenizer: Any,
    task: TaskData,
    max_length: int | None = None,
    template: Template = "auto",
    batch_size: int = BATCH,
    is_bf16: bool = False,
    say: Say = lambda line: None,
) -> dict[str, float]:
    """Encode the evaluation rows of a task, and measure a model on them.

    Args:
        model: a model of transformers or PEFT; gets the padding of the tokenizer where it has none.
        tokenizer: its tokenizer; gets that of the model where it has none.
        task: as `load_task` returns it.
        max_length: tokens of a row at most; None means as many as the model takes.
        template: how instructions are written.
        batch_size: rows at once.
        is_bf16: compute in bfloat16.
        say: gets a line about rows that were cut.

    Example:
        score_task(model, tokenizer, load_task(DataSource(data="glue", task="sst2")))["accuracy"]
    """
    rows = encoded_for(model, tokenizer, task, max_length, template, say)
    return score(model, tokenizer, task, rows, batch_size, is_bf16)


def encoded_for(
    model: Any, tokenizer: Any, task: TaskData, max_length: int | None, template: Template, say: Say
) -> Any:
    """The evaluation rows of a task, encoded for a model; arguments as in `score_task`."""
    if task.kind == IMAGES:
        # imported here: all else works without Pillow
        from lrlora.data.pixels import Pixels

        return Pixels(task.evaluation, tokenizer)
    settle_padding(model, tokenizer)
    length = length_of_rows(max_length, tokenizer, model, say)
    return encode_rows(task, tokenizer, length, template, "evaluation", say)


@contextmanager
def evaluating(model: Any, is_bf16: bool = False) -> Iterator[None]:
    """A model in evaluation mode, without gradients, in bfloat16 if it was trained so; changed back to its mode."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=is_bf16):
            yield
    finally:
        model.train(was_training)


def collator_of(task: TaskData, tokenizer: Any, model: Any = None) -> Any:
    """What makes a batch of encoded rows of a task; of images for this model."""
    if task.kind == IMAGES:
        from lrlora.data.pixels import collate_images

        return collate_images(forward_arguments(model, tokenizer))
    if task.kind in LANGUAGE:
        return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
    return DataCollatorWithPadding(tokenizer)


def batches(encoded: Any, collate: Any, batch_size: int, device: torch.device, rank: int = 0, many: int = 1):
    """Batches of rows of like length, the longest first, with the rows' numbers: padding costs as much as text.

    Of `many` processes each gets every many-th batch, and all get as many, because a model in shards takes the forward
    passes of all processes: where the last round has too few batches, the others score the last one again.
    """
    columns = [name for name in encoded.column_names if name not in ("text", "text_pair")]
    # images are all of one size
    is_text = "input_ids" in encoded.column_names
    lengths = [len(tokens) for tokens in encoded["input_ids"]] if is_text else [1] * len(encoded)
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    starts = range(0, len(order), batch_size)
    for first in range(0, len(starts), many):
        start = starts[min(first + rank, len(starts) - 1)]
        numbers = order[start : start + batch_size]
        part = encoded[numbers]
        rows = [{name: part[name][i] for name in columns} for i in range(len(numbers))]
        yield (
            numbers,
            {
                name: value.to(device) if isinstance(value, torch.Tensor) else value
                for name, value in collate(rows).items()
            },
        )


def metrics_of(task: TaskData, scores: Any, labels: Any) -> dict[str, float]:
    """The metrics of a task from what a model's head gives, [rows, classes] or [rows, 1], and the labels [rows]."""
    predictions = scores.squeeze(-1) if task.kind == "regression" else numpy.argmax(scores, axis=-1)
    return compute_metrics(task.metrics, predictions, labels, task.positive)


def _logits(model: Any, batch: dict[str, Any]) -> list[Any]:
    """The output of the head for every row."""
    batch.pop("labels")
    # as numbers: a row of a tensor would take its whole batch along to other processes
    return model(**batch).logits.float().tolist()


def _of_labels(task: TaskData, outputs: list[Any], encoded: Any) -> dict[str, float]:
    logits, labels = torch.tensor(outputs), torch.tensor(encoded["labels"][:])
    is_number = task.kind == "regression"
    loss = mse_loss(logits.squeeze(-1), labels.float()) if is_number else cross_entropy(logits, labels)
    return {**metrics_of(task, logits.numpy(), labels.numpy()), "loss": loss.item()}


def _nats(model: Any, batch: dict[str, Any]) -> list[Any]:
    """The nats of every row, and the number of tokens that they are of."""
    logits, labels, is_label = labelled_logits(model, batch)
    counts = is_label.sum(dim=-1).tolist()
    each = cross_entropy(logits.float(), labels, reduction="none").split(counts)
    return [(nats.double().sum().item(), count) for nats, count in zip(each, counts, strict=True)]


def _of_tokens(task: TaskData, outputs: list[Any], encoded: Any) -> dict[str, float]:
    return {"loss": math.fsum(nats for nats, _ in outputs) / max(sum(count for _, count in outputs), 1)}


def _nats_and_base(model: Any, batch: dict[str, Any]) -> list[Any]:
    """The nats of every row with the adapter, and without."""
    if not hasattr(model, "disable_adapter"):
        raise InputError(
            "preference pairs are scored by an adapter against its base, got a model without one; give the adapter"
        )
    with_adapter = [nats for nats, _ in _nats(model, batch)]
    with model.disable_adapter():
        return list(zip(with_adapter, (nats for nats, _ in _nats(model, batch)), strict=True))


def _of_pairs(task: TaskData, outputs: list[Any], encoded: Any) -> dict[str, float]:
    gains = torch.tensor(outputs, dtype=torch.float64)
    raised = gains[:, 1] - gains[:, 0]
    margins = raised[0::2] - raised[1::2]
    loss = -logsigmoid(BETA * margins)
    return {
        "accuracy": (margins > 0).double().mean().item(), "margin": margins.mean().item(), "loss": loss.mean().item()
    }  # fmt: skip


SCORERS: dict[str, tuple[Callable[[Any, Any], list[Any]], Callable[[TaskData, list[Any], Any], dict[str, float]]]] = {
    "classification": (_logits, _of_labels),
    "image-classification": (_logits, _of_labels),
    "regression": (_logits, _of_labels),
    "causal": (_nats, _of_tokens),
    "preference": (_nats_and_base, _of_pairs),
}
"""By kind of task: what a model gives for the rows of a batch, and what all of it amounts to. A new kind is a line."""
