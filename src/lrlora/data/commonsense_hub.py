"""The eight commonsense tasks as the hub keeps them, turned into question, choices and label."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lrlora.errors import InputError

Row = dict[str, Any]


@dataclass(frozen=True)
class HubTask:
    """Where a task is on the hub, its labelled test split, and how its rows are turned."""

    path: str
    subset: str | None
    test_split: str
    turn: Callable[[Row], tuple[str, list[str], int]]


def _boolq(row: Row) -> tuple[str, list[str], int]:
    # the hub's questions are without the mark that LLM-Adapters' have
    return row["question"].rstrip("?") + "?", ["false", "true"], int(row["answer"])


def _lettered(row: Row) -> tuple[str, list[str], int]:
    # ARC and OBQA: choices with labels, A to E or 1 to 4
    question = row["question_stem"] if "question_stem" in row else row["question"]
    return question, row["choices"]["text"], row["choices"]["label"].index(row["answerKey"].strip())


def _siqa(row: Row) -> tuple[str, list[str], int]:
    return (
        f"{row['context']} {row['question']}",
        [row["answerA"], row["answerB"], row["answerC"]],
        int(row["label"]) - 1,
    )


HUB: dict[str, HubTask] = {
    "boolq": HubTask("google/boolq", None, "validation", _boolq),
    "piqa": HubTask("baber/piqa", None, "validation", lambda r: (r["goal"], [r["sol1"], r["sol2"]], int(r["label"]))),
    "siqa": HubTask("lighteval/siqa", None, "validation", _siqa),
    "hellaswag": HubTask(
        "Rowan/hellaswag",
        None,
        "validation",
        lambda r: (f"{r['activity_label']}: {r['ctx']}", r["endings"], int(r["label"])),
    ),
    "winogrande": HubTask(
        "allenai/winogrande",
        "winogrande_xl",
        "validation",
        lambda r: (r["sentence"], [r["option1"], r["option2"]], int(r["answer"]) - 1),
    ),
    "arc_e": HubTask("allenai/ai2_arc", "ARC-Easy", "test", _lettered),
    "arc_c": HubTask("allenai/ai2_arc", "ARC-Challenge", "test", _lettered),
    "obqa": HubTask("allenai/openbookqa", "main", "test", _lettered),
}
"""BoolQ, PIQA, SIQA, HellaSwag and WinoGrande have no labelled test split: the literature reports on validation."""


def hub_rows(task: str, split: str) -> Iterator[Row]:
    """Rows {"question", "choices", "label"} of a task on the hub.

    Raises:
        InputError: the hub cannot be reached, or has no such data any more.
    """
    from datasets import load_dataset

    source = HUB[task]
    name = source.test_split if split == "test" else "train"
    try:
        rows = load_dataset(source.path, source.subset, split=name)
    except Exception as error:  # datasets raises a dozen types here, from offline to unknown configuration
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot read {source.path} ({name}) from the hub: {reason}") from error
    for row in rows:
        question, choices, label = source.turn(dict(row))
        yield {"question": question, "choices": list(choices), "label": label}
