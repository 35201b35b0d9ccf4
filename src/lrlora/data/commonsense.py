"""The eight commonsense tasks as instructions, in the words of LLM-Adapters (arXiv:2304.01933); local files or hub."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lrlora.data.commonsense_hub import hub_rows
from lrlora.data.tables import json_rows
from lrlora.errors import InputError

Split = Literal["train", "test"]
_SUFFIXES = (".jsonl.gz", ".jsonl")
# between instruction and choices, between two choices, and before the answer format
_USUAL = ("\n\n", " ", "\n\n")


@dataclass(frozen=True)
class CommonsenseTask:
    """How a task is asked and answered.

    Args:
        title: name in the literature.
        choices: smallest and largest number of choices of a row.
        word: what the answers are called, "answer" for answer1, answer2, ...; "" for false and true.
        opening: first words of the instruction.
        spacing: white space before the choices, between two of them, and before the answer format.
    """

    title: str
    choices: tuple[int, int]
    word: str
    opening: str
    spacing: tuple[str, str, str] = _USUAL

    def answers(self, count: int | None = None) -> tuple[str, ...]:
        """Names of the answers in the order of the choices: of `count` choices, or of as many as a row can have."""
        if not self.word:
            return ("false", "true")
        return tuple(f"{self.word}{number}" for number in range(1, (count or self.choices[1]) + 1))


_QUESTION = "Please choose the correct answer to the question: "
COMMONSENSE: dict[str, CommonsenseTask] = {
    "boolq": CommonsenseTask(
        "BoolQ", (2, 2), "", "Please answer the following question with true or false, question: "
    ),
    "piqa": CommonsenseTask(
        "PIQA", (2, 2), "solution", "Please choose the correct solution to the question: ", ("\n\n", "\n\n", "\n\n")
    ),
    "siqa": CommonsenseTask("SIQA", (3, 3), "answer", _QUESTION),
    "hellaswag": CommonsenseTask(
        "HellaSwag", (4, 4), "ending", "Please choose the correct ending to complete the given sentence: "
    ),
    "winogrande": CommonsenseTask(
        "WinoGrande",
        (2, 2),
        "option",
        "Please choose the correct answer to fill in the blank to complete the given sentence: ",
        ("\n\n", " ", " "),
    ),
    "arc_e": CommonsenseTask("ARC-e", (3, 5), "answer", _QUESTION),
    "arc_c": CommonsenseTask("ARC-c", (3, 5), "answer", _QUESTION),
    "obqa": CommonsenseTask("OBQA", (4, 4), "answer", _QUESTION),
}
"""The eight tasks by the names of their files."""


def instruction_of(task: str, question: str, choices: list[str]) -> str:
    """The instruction of a row, as LLM-Adapters words it.

    Example:
        >>> print(instruction_of("obqa", "The sun is", ["hot", "cold", "wet", "sad"]))
        Please choose the correct answer to the question: The sun is
        <BLANKLINE>
        Answer1: hot Answer2: cold Answer3: wet Answer4: sad
        <BLANKLINE>
        Answer format: answer1/answer2/answer3/answer4
    """
    spec = COMMONSENSE[task]
    if not spec.word:
        return f"{spec.opening}{question}\n\nAnswer format: true/false"
    before, between, after = spec.spacing
    names = spec.answers(len(choices))
    listed = between.join(f"{name.capitalize()}: {choice}" for name, choice in zip(names, choices, strict=True))
    return f"{spec.opening}{question}{before}{listed}{after}Answer format: {'/'.join(names)}"


def load_commonsense(
    folder_or_hub: str | Path, task: str, rows: int | None = None, seed: int = 0, split: Split = "test"
) -> list[dict[str, Any]]:
    """The rows of a task, checked, each with its instruction, output and answer.

    Args:
        folder_or_hub: a folder with TASK_train.jsonl(.gz) and TASK_test.jsonl(.gz), one such file, or "hub".
        task: a name of COMMONSENSE; of a folder also the name of a mixture, whose rows name their own `task`.
        rows: at most so many, drawn with `seed` and left in their order; None means all.
        seed: of that draw: the same subset for every model.
        split: "test" is the labelled split that the literature reports on; the hub calls it validation for most tasks.

    Returns:
        Dicts with task, idx, question, choices, label (number of the right choice), instruction, output, answer.

    Raises:
        InputError: an unknown task, a missing file, or a row that cannot be used, named by file and row.
    """
    if rows is not None and rows < 1:
        raise InputError(f"rows must be at least 1, got {rows}; leave it out for all rows")
    if str(folder_or_hub) == "hub":
        if task not in COMMONSENSE:
            raise InputError(f"no commonsense task {task!r}; there are: {', '.join(COMMONSENSE)}")
        where, found = f"hub: {task}", enumerate(hub_rows(task, split), 1)
    else:
        file = _file_of(Path(folder_or_hub).expanduser(), task, split)
        where, found = str(file), json_rows(file)
    checked = [_complete(row, number, task, where) for number, row in found]
    if not checked:
        raise InputError(f"{where} has no rows")
    if rows is None or rows >= len(checked):
        return checked
    return [checked[i] for i in sorted(random.Random(seed).sample(range(len(checked)), rows))]


def _file_of(path: Path, task: str, split: Split) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"no such file or folder: {path}; for the hub's own data pass 'hub'")
    for suffix in _SUFFIXES:
        file = path / f"{task}_{split}{suffix}"
        if file.is_file():
            return file
    ending = tuple(f"_{split}{suffix}" for suffix in _SUFFIXES)
    there = sorted(f.name.split(ending[0].split(".")[0])[0] for f in path.iterdir() if f.name.endswith(ending))
    raise InputError(
        f"{path} has no {task}_{split}.jsonl(.gz); it has {split} rows of: {', '.join(there) or 'no task'}"
    )


def _complete(row: dict[str, Any], number: int, task: str, where: str) -> dict[str, Any]:
    def refuse(problem: str) -> InputError:
        return InputError(f"{where}: row {number} {problem}")

    name = row.get("task", task)
    if name not in COMMONSENSE:
        raise refuse(f"is of task {name!r}, needed one of: {', '.join(COMMONSENSE)}")
    if task in COMMONSENSE and name != task:
        raise refuse(f"is of task {name!r}, needed {task!r}")
    question, choices, label = row.get("question"), row.get("choices"), row.get("label")
    if not isinstance(question, str) or not question.strip():
        raise refuse("has no 'question'")
    spec = COMMONSENSE[name]
    least, most = spec.choices
    if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
        raise refuse(f"needs 'choices', a list of texts, got {choices!r}")
    if not least <= len(choices) <= most:
        raise refuse(f"has {len(choices)} choices, {spec.title} has {least if least == most else f'{least} to {most}'}")
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(choices):
        raise refuse(f"needs 'label', the number of the right choice from 0 to {len(choices) - 1}, got {label!r}")
    if not spec.word and choices != ["false", "true"]:
        raise refuse(f"needs the choices ['false', 'true'], got {choices!r}")
    answer = spec.answers(len(choices))[label]
    if row.get("answer", answer) != answer:
        raise refuse(f"has the answer {row['answer']!r}, but its label {label} means {answer!r}")
    return {
        "task": name,
        "idx": row.get("idx", number - 1),
        "question": question,
        "choices": choices,
        "label": label,
        "instruction": row.get("instruction") or instruction_of(name, question, choices),
        "output": row.get("output") or f"the correct answer is {answer}",
        "answer": answer,
    }
