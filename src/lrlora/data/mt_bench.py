"""MT-Bench (arXiv:2306.05685) in the files of FastChat: questions of two turns, and what a model answered to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrlora.data.tables import json_rows, shortened
from lrlora.errors import InputError

TURNS = 2
_TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1,
    "humanities": 0.1,
}  # fmt: skip
"""FastChat's."""
_WITH_REFERENCE = ("math", "reasoning", "coding")
"""Categories whose references FastChat shows to the judge."""


@dataclass(frozen=True)
class Question:
    """A question of two turns.

    Args:
        number: "question_id" in the file.
        category: decides the temperature of its answers.
        turns: the two requests.
        references: a right answer of each turn; "" where there is none, or where a judge is not shown it.
    """

    number: int | str
    category: str
    turns: tuple[str, str]
    references: tuple[str, str] = ("", "")

    @property
    def temperature(self) -> float:
        """At which it is answered, as in FastChat: by its category, 0.7 for one that FastChat does not know."""
        return _TEMPERATURES.get(self.category, 0.7)


def read_questions(path: Path, say: Callable[[str], None] = lambda line: None) -> list[Question]:
    """The questions of a file in FastChat's format.

    Args:
        path: .jsonl or .jsonl.gz with question_id, category, turns, and reference where there is one.
        say: gets a line about references that no judge is shown.

    Raises:
        InputError: no such file, a row that is no question of two turns, or a question_id that is there twice.
    """
    found: dict[int | str, Question] = {}
    unused = 0
    for row, fields in _rows(path):
        where = f"{path}: row {row}"
        number, category, turns = fields.get("question_id"), fields.get("category"), _pair(fields.get("turns"))
        if not isinstance(number, int | str) or isinstance(number, bool):
            raise InputError(f"{where}: question_id must be a number or a text, got {shortened(number)}")
        if not isinstance(category, str):
            raise InputError(f"{where}: category must be a text such as writing, got {shortened(category)}")
        if turns is None or not all(turn.strip() for turn in turns):
            raise InputError(f"{where}: turns must be a list of {TURNS} texts, got {shortened(fields.get('turns'))}")
        if number in found:
            raise InputError(f"{where}: question_id {number} is there twice; delete one of the rows")
        references = _references(fields.get("reference"), where)
        if any(references) and category not in _WITH_REFERENCE:
            unused += 1
            references = ("", "")
        found[number] = Question(number, category, turns, references)
    if unused:
        say(
            f"{path}: references of {unused} questions are not used: a judge is shown those of "
            f"{', '.join(_WITH_REFERENCE)} alone, as in FastChat"
        )
    return list(found.values())


def read_answers(
    path: Path, questions: Sequence[Question], model_id: str, say: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """The answers of a file in FastChat's format (`model_answer`), in the order of the questions.

    Args:
        path: .jsonl or .jsonl.gz with question_id, model_id and choices.
        questions: each must have an answer.
        model_id: that the file must have.
        say: gets a line about answers that are not read.

    Raises:
        InputError: no such file, a row that is no answer, another model's, or a question without one.
    """
    found: dict[Any, dict[str, Any]] = {}
    several = 0
    for row, fields in _rows(path):
        where = f"{path}: row {row}"
        number, choices = fields.get("question_id"), fields.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(first, dict) or _pair(first.get("turns")) is None:
            raise InputError(f"{where}: choices must hold {TURNS} turns, both texts, got {shortened(choices)}")
        if fields.get("model_id") != model_id:
            raise InputError(
                f"{where} is an answer of {fields.get('model_id')!r}, needed {model_id!r}; pass --model_id, or another "
                "--out"
            )
        if number in found:
            raise InputError(f"{where}: question_id {number} is there twice; delete one of the rows")
        several += len(fields["choices"]) > 1
        found[number] = fields
    if lacking := [question.number for question in questions if question.number not in found]:
        raise InputError(
            f"{path} has no answer to question {lacking[0]} ({len(lacking)} such questions); pass the questions that "
            "were answered, or another --out"
        )
    if several:
        say(f"{path}: {several} questions have several answers (choices); the first one is read")
    if more := len(found) - len(questions):
        say(f"{path}: {more} answers to other questions are not read")
    return [found[question.number] for question in questions]


def turns_of(answer: dict[str, Any]) -> list[str]:
    """The texts of both turns of an answer."""
    return answer["choices"][0]["turns"]


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    if not path.name.lower().removesuffix(".gz").endswith(".jsonl"):
        raise InputError(f"cannot read {path}: needed .jsonl or .jsonl.gz in the format of FastChat")
    try:
        found = list(json_rows(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if not found:
        raise InputError(f"{path} has no rows")
    return found


def _references(value: Any, where: str) -> tuple[str, str]:
    if value is None or value == []:
        return "", ""
    if not isinstance(value, list) or len(value) > TURNS or not all(isinstance(each, str | None) for each in value):
        raise InputError(f"{where}: reference must be a list of at most {TURNS} texts, got {shortened(value)}")
    both = [*(each or "" for each in value), ""]
    return both[0], both[1]


def _pair(value: Any) -> tuple[str, str] | None:
    """Two texts; None where a value is not that."""
    if isinstance(value, list) and len(value) == TURNS and all(isinstance(each, str) for each in value):
        return value[0], value[1]
    return None
