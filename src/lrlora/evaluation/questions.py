"""How lm-eval asks the eight tasks, from rows that hold question and choices: the choice itself is what is scored."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One row as contexts and continuations, one pair for each choice.

    Args:
        contexts: what the model has read before; the same text for every choice but for WinoGrande.
        continuations: what is scored; the same text for every choice for WinoGrande.
        label: number of the right choice.
    """

    contexts: list[str]
    continuations: list[str]
    label: int


HAS_ACC_NORM = ("piqa", "hellaswag", "arc_e", "arc_c", "obqa")
"""Tasks whose choices are whole texts of unequal length: lm-eval also divides their likelihood by their length."""


def ask(task: str, row: dict[str, Any]) -> Asked:
    """A row in the words of lm-eval's own task of that name.

    Example:
        >>> ask("winogrande", {"question": "The _ is smaller.", "choices": ["tank", "pond"], "label": 0}).contexts
        ['The tank', 'The pond']
    """
    question, choices, label = row["question"], row["choices"], row["label"]
    if task == "winogrande":
        # the option is read, and the text after the gap is scored
        before, after = question.split("_", 1)
        return Asked([before + choice for choice in choices], [after.strip()] * len(choices), label)
    if task == "hellaswag":
        question, choices = _without_tags(question), [_without_tags(choice) for choice in choices]
    if task == "boolq":
        choices = ["no", "yes"]
    context = {
        "siqa": f"Q: {question}\nA:",
        "hellaswag": question,
        "obqa": question,
    }.get(task, f"Question: {question}\nAnswer:")
    return Asked([context] * len(choices), choices, label)


def _without_tags(text: str) -> str:
    # HellaSwag's WikiHow rows hold [header], [title], [step]
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")
