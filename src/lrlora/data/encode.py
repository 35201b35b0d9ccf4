"""Text to token numbers: single texts and pairs for classification, instruction and answer for language modelling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lrlora.data.tasks import TaskData
from lrlora.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

Template = Literal["auto", "chat", "plain"]
IGNORED = -100
"""Label of tokens that the loss leaves out."""
_AT_ONCE = 1000

Say = Callable[[str], None]


def encode(
    task: TaskData, tokenizer: Any, max_length: int, template: Template = "auto", say: Say = lambda line: None
) -> tuple[Dataset, Dataset]:
    """Tokenise both sides of a task.

    Args:
        task: as `load_task` returns it.
        tokenizer: of the model.
        max_length: tokens of a row at most. Longer texts are cut at their end; of an instruction the front of the
            prompt is cut. How many were is said.
        template: how instructions are written.
        say: gets a line about rows that were cut.

    Returns:
        Train and evaluation rows with input_ids, attention_mask and labels.

    Raises:
        InputError: template "chat" with a tokenizer that has none; an instruction of which max_length leaves nothing.
    """
    return (
        encode_rows(task, tokenizer, max_length, template, "train", say),
        encode_rows(task, tokenizer, max_length, template, "evaluation", say),
    )


def encode_rows(
    task: TaskData,
    tokenizer: Any,
    max_length: int,
    template: Template = "auto",
    side: Literal["train", "evaluation"] = "evaluation",
    say: Say = lambda line: None,
) -> Dataset:
    """Tokenise one side of a task; arguments and errors as for `encode`."""
    rows: Dataset = getattr(task, side)
    file = task.files[side == "evaluation"]
    cut = _Cut()
    if task.kind == "causal":
        made = _instructions(rows, tokenizer, max_length, uses_chat(tokenizer, template), file, cut)
    else:
        made = _texts(rows, tokenizer, max_length, cut)
    for line in cut.lines(len(rows), side, file, max_length):
        say(line)
    return made


@dataclass
class _Cut:
    """What was cut: rows, and of them the longest with its number in the file; and answers without a word."""

    count: int = 0
    longest: int = 0
    row: int = 0
    empty: int = 0

    def add(self, length: int, row: int) -> None:
        self.count += 1
        if length > self.longest:
            self.longest, self.row = length, row

    def lines(self, rows: int, side: str, file: str, max_length: int) -> list[str]:
        of = f"of {rows} {'training' if side == 'train' else side} rows"
        lines = []
        if self.count:
            lines.append(
                f"{self.count} {of} are longer than max_length {max_length} and were cut; the longest, row {self.row} "
                f"of {file}, has {self.longest} tokens"
            )
        if self.empty:
            lines.append(f"{self.empty} {of} have an empty answer: the model learns to end at once there")
        return lines


def _texts(rows: Dataset, tokenizer: Any, max_length: int, cut: _Cut) -> Dataset:
    from datasets import Dataset

    fields: dict[str, list[Any]] = {}
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        given = (part["text"], part["text_pair"]) if "text_pair" in part else (part["text"],)
        # whole first, to know what is cut; verbose would warn of the same in other words
        lengths = [len(ids) for ids in tokenizer(*given, truncation=False, verbose=False)["input_ids"]]
        for length, number in zip(lengths, _numbers(part, start), strict=True):
            if length > max_length:
                cut.add(length, number)
        for name, values in tokenizer(*given, truncation=True, max_length=max_length).items():
            fields.setdefault(name, []).extend(values)
    return Dataset.from_dict({**fields, "labels": rows["label"][:]})


def _instructions(
    rows: Dataset, tokenizer: Any, max_length: int, is_chat: bool, file: str, cut: _Cut
) -> Dataset:  # fmt: skip
    from datasets import Dataset

    made: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        numbers = _numbers(part, start)
        for position, number in enumerate(numbers):
            row = {name: part[name][position] for name in ("instruction", "input", "answer")}
            try:
                encoded = _instruction(row, tokenizer, max_length, is_chat)
            except InputError as error:
                raise InputError(f"{file}: row {number}: {error}") from error
            if encoded.length > max_length:
                cut.add(encoded.length, number)
            cut.empty += not row["answer"].strip()
            for name in made:
                made[name].append(getattr(encoded, name))
    return Dataset.from_dict(made)


def _numbers(part: dict[str, list[Any]], start: int) -> list[int]:
    """The numbers of rows in their file; of rows that were made in memory their place."""
    return part["row"] if "row" in part else [start + n + 1 for n in range(len(next(iter(part.values()))))]


def uses_chat(tokenizer: Any, template: Template) -> bool:
    """Whether instructions are written with the tokenizer's chat template.

    Raises:
        InputError: template "chat" with a tokenizer that has none.
    """
    if template == "chat" and not tokenizer.chat_template:
        raise InputError("template 'chat' needs a tokenizer with a chat template, this one has none; pass 'plain'")
    return template == "chat" or (template == "auto" and bool(tokenizer.chat_template))


def prompt_text(request: str, tokenizer: Any, is_chat: bool) -> str:
    """The text before an answer, in training as in evaluation."""
    if not is_chat:
        return f"### Instruction:\n{request}\n\n### Response:\n"
    message = [{"role": "user", "content": request}]
    return tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)


def prompt_ids(request: str, tokenizer: Any, is_chat: bool) -> list[int]:
    """`prompt_text` in tokens; a chat template brings its own special tokens."""
    text = prompt_text(request, tokenizer, is_chat)
    ids = tokenizer(text, add_special_tokens=not is_chat, verbose=False)["input_ids"]
    ends = not is_chat and tokenizer.eos_token_id is not None and ids[-1:] == [tokenizer.eos_token_id]
    return ids[:-1] if ends else ids


@dataclass(frozen=True)
class _Instruction:
    """One instruction with its answer in tokens, and its length before anything was cut."""

    input_ids: list[int]
    attention_mask: list[int]
    labels: list[int]
    length: int


def encode_instruction(row: dict[str, Any], tokenizer: Any, max_length: int, is_chat: bool) -> dict[str, list[int]]:
    """One instruction and its answer; the loss is on the answer (and the end token) only.

    Where both do not fit into max_length, the front of the prompt is cut; the answer and its end token never are.

    Raises:
        InputError: max_length leaves no room for the answer, or for anything of the instruction.
    """
    made = _instruction(row, tokenizer, max_length, is_chat)
    return {"input_ids": made.input_ids, "attention_mask": made.attention_mask, "labels": made.labels}


def _instruction(row: dict[str, Any], tokenizer: Any, max_length: int, is_chat: bool) -> _Instruction:
    request = row["instruction"] + (f"\n\n{row['input']}" if row["input"] else "")
    before = prompt_ids(request, tokenizer, is_chat)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    answer = tokenizer(row["answer"], add_special_tokens=False, verbose=False)["input_ids"] + end
    length = len(before) + len(answer)
    if length > max_length:
        room = max_length - len(answer)
        least = 1 + _tokens_behind(request, tokenizer, is_chat)
        if room < least:
            raise InputError(
                f"its answer has {len(answer)} tokens, and max_length {max_length} leaves nothing of its "
                f"instruction; pass max_length {len(answer) + least} or more ({length} for all of it), or leave the "
                "row out"
            )
        before = before[len(before) - room :]
    ids = before + answer
    return _Instruction(ids, [1] * len(ids), [IGNORED] * len(before) + answer, length)


def _tokens_behind(request: str, tokenizer: Any, is_chat: bool) -> int:
    """How many tokens of a prompt come after the instruction itself."""
    _, _, behind = prompt_text(request, tokenizer, is_chat).rpartition(request.strip())
    return len(tokenizer(behind, add_special_tokens=False, verbose=False)["input_ids"])
