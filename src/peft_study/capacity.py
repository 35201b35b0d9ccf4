"""How much an adapter holds: bits, exact recall, forgetting; of a cell, and over the seeds of an arm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy, log_softmax

from lrlora.data import TaskData
from lrlora.evaluation.labelled import labelled_logits
from lrlora.evaluation.score import batches, collator_of, evaluating
from lrlora.statistics import Interval, bounds_of, mean_interval
from peft_study.result import CellResult

UNRELATED_TOKENS = 128
"""The first so many tokens of an unrelated article are scored."""
_LOGITS_AT_ONCE = 1 << 26
"""A quarter of a gigabyte in float32, and half a gigabyte in float64 if all of them are of labels."""
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Capacity:
    """What an arm holds of the facts of a task, over the seeds of its result.

    Args:
        facts: D, how many were to be memorised.
        bits: sum over facts of log2(values) - NLL_2(answer); None for pairs of a file.
        bits_per_parameter: over trained parameters.
        exact_recall: fraction of facts whose answer greedy decoding gives, to its end.
        nats_per_fact: negative log likelihood of an answer.
        ratio: of the task's metric, bits or exact recall, to the reference arm's at the same seed; None for the
            reference itself, and where one of its values is not above 0.
        unrelated_nats_before, unrelated_nats_after: nats per token of unrelated English without and with the adapter;
            None where the task does not ask.
    """

    facts: int
    bits: Interval | None
    bits_per_parameter: Interval | None
    exact_recall: Interval | None
    nats_per_fact: Interval | None
    ratio: Interval | None
    unrelated_nats_before: Interval | None
    unrelated_nats_after: Interval | None


def score_facts(model: Any, tokenizer: Any, data: TaskData, encoded: Any, is_bf16: bool = False) -> dict[str, float]:
    """Ask a model for all facts of a task.

    bits = sum_i (log2 V - NLL_i / ln 2), nats_per_fact = mean_i NLL_i. Exact recall takes one pass and no decoding:
    greedy decoding gives an answer if and only if each of its tokens, the end token included, is the most likely one
    after those before it.

    Args:
        model: with or without an adapter; changed back to its mode.
        tokenizer: of the model.
        data: as `peft_study.facts.load_facts` returns it; V is the number of its labels.
        encoded: its rows.
        is_bf16: compute in bfloat16, as a training in that precision does.

    Returns:
        "exact_recall", "nats_per_fact", "loss" (the same), of drawn facts "bits" and "bits_per_parameter" (over those
        parameters that need a gradient).
    """
    with evaluating(model, is_bf16):
        nats, recalled = (_of_answers if data.kind == "causal" else _of_labels)(model, tokenizer, data, encoded)
    many = len(encoded)
    found = {"exact_recall": recalled / many, "nats_per_fact": nats / many, "loss": nats / many}
    if data.labels:
        found["bits"] = many * math.log2(len(data.labels)) - nats / math.log(2)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        found["bits_per_parameter"] = found["bits"] / max(1, trained)
    return found


def _of_labels(model: Any, tokenizer: Any, data: TaskData, encoded: Any) -> tuple[float, int]:
    nats, recalled = 0.0, 0
    for _, batch in batches(encoded, collator_of(data, tokenizer), _ROWS_AT_ONCE, model.device):
        labels = batch.pop("labels")
        logs = log_softmax(model(**batch).logits.double(), dim=-1)
        nats -= logs.gather(1, labels[:, None]).sum().item()
        recalled += int((logs.argmax(dim=-1) == labels).sum())
    return nats, recalled


def _of_answers(model: Any, tokenizer: Any, data: TaskData, encoded: Any) -> tuple[float, int]:
    nats, recalled = 0.0, 0
    for _, batch in batches(encoded, collator_of(data, tokenizer), _rows_at_once(model, encoded), model.device):
        losses, is_right, is_answer = _of_tokens(model, batch)
        nats += losses.sum().item()
        whole = torch.ones_like(is_answer)
        whole[is_answer] = is_right
        recalled += int(whole.all(dim=-1).sum())
    return nats, recalled


def _of_tokens(model: Any, batch: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Of every token that is a label: its nats, and whether it is the likeliest; and which of all but the first are."""
    logits, wanted, is_label = labelled_logits(model, batch)
    # in float32 a sum over a vocabulary loses the fifth digit
    logits = logits.double()
    losses = cross_entropy(logits, wanted, reduction="none")
    return losses, logits.argmax(dim=-1) == wanted, is_label


def unrelated_nats(model: Any, tokenizer: Any, data: TaskData, encoded: Any, is_bf16: bool = False) -> float:
    """Mean nats per token of plain text, as `lrlora.data.facts.encode_texts` gives it; each row's first has none."""
    total, tokens = 0.0, 0
    collate = collator_of(data, tokenizer)
    with evaluating(model, is_bf16):
        for _, batch in batches(encoded, collate, _rows_at_once(model, encoded), model.device):
            losses, _, _ = _of_tokens(model, batch)
            total += losses.sum().item()
            tokens += len(losses)
    return total / max(1, tokens)


def _rows_at_once(model: Any, encoded: Any) -> int:
    longest = max(len(row) for row in encoded["input_ids"])
    vocabulary = model.config.get_text_config().vocab_size
    return max(1, min(_ROWS_AT_ONCE, _LOGITS_AT_ONCE // (longest * vocabulary)))


def capacity_of(final: Sequence[CellResult], theirs: Sequence[CellResult]) -> Capacity | None:
    """What an arm holds, from its final rows and those of the reference; None where its task is of another kind.

    Args:
        final: rows that are done.
        theirs: of the reference arm; empty for the reference itself.
    """
    if not final or "nats_per_fact" not in (final[0].metrics or {}):
        return None

    def over_seeds(name: str) -> Interval | None:
        found = [(row.metrics or {}).get(name) for row in final]
        values = [value for value in found if value is not None]
        return mean_interval(values, bounds=bounds_of(name)) if values else None

    others = {row.seed: row.known_value for row in theirs}
    pairs = [(row.known_value, others[row.seed]) for row in final if row.seed in others]
    is_known = bool(pairs) and all(other > 0 for _, other in pairs)
    return Capacity(
        facts=final[0].train_rows or 0,
        bits=over_seeds("bits"),
        bits_per_parameter=over_seeds("bits_per_parameter"),
        exact_recall=over_seeds("exact_recall"),
        nats_per_fact=over_seeds("nats_per_fact"),
        ratio=mean_interval([ours / other for ours, other in pairs]) if is_known else None,
        unrelated_nats_before=over_seeds("unrelated_nats_before"),
        unrelated_nats_after=over_seeds("unrelated_nats_after"),
    )
