"""Text to token numbers: single texts and pairs for classification, chats, prompts and texts for language modelling."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lrlora.data.render import Renderer, same_beginning
from lrlora.data.tasks import LANGUAGE, TaskData
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
        Train and evaluation rows with input_ids, attention_mask and labels; two of them, chosen and rejected, of every
        preference pair.

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
    if task.kind in LANGUAGE:
        renderer = Renderer(tokenizer, uses_chat(tokenizer, template))
        encode_one = encode_row if task.kind == "causal" else encode_pair
        made = _language(rows, renderer, tokenizer, max_length, file, cut, encode_one)
        for line in renderer.said:
            say(f"{file}: {line}")
    else:
        made = _texts(rows, tokenizer, max_length, cut)
    for line in cut.lines(len(rows), side, file, max_length):
        say(line)
    return made


@dataclass
class _Cut:
    """What was cut: rows, and of them the longest with its number in the file; and answers without a word;
    and how many rows were made to continue texts that are longer."""

    count: int = 0
    longest: int = 0
    row: int = 0
    empty: int = 0
    continued: int = 0

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
        if self.continued:
            lines.append(
                f"texts that are longer than max_length {max_length} continue in a row of their own: {rows} "
                f"{'training' if side == 'train' else side} texts are {rows + self.continued} rows"
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


def _language(
    rows: Dataset, renderer: Renderer, tokenizer: Any, max_length: int, file: str, cut: _Cut,
    encode_one: Callable[..., EncodedRow],
) -> Dataset:  # fmt: skip
    """Rows of a language model: labels where the text is learned."""
    from datasets import Dataset

    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} does not tell which token is where; pass a fast tokenizer's folder"
        )
    made: dict[str, list[Any]] = {"input_ids": [], "labels": []}
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        for position, number in enumerate(_numbers(part, start)):
            row = {name: part[name][position] for name in part}
            try:
                encoded = encode_one(row, renderer, tokenizer, max_length)
            except InputError as error:
                raise InputError(f"{file}: row {number}: {error}") from error
            if encoded.length > max_length:
                cut.add(encoded.length, number)
            cut.empty += encoded.is_empty
            if "text" in row:
                cut.continued += len(encoded.pieces) - 1
            for ids, labels in encoded.pieces:
                made["input_ids"].append(ids)
                made["labels"].append(labels)
    made["attention_mask"] = [[1] * len(ids) for ids in made["input_ids"]]
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
    return Renderer(tokenizer, is_chat).prompt(request)


def prompt_ids(request: str, tokenizer: Any, is_chat: bool) -> list[int]:
    """`prompt_text` in tokens; a chat template brings its own special tokens."""
    return _tokens(prompt_text(request, tokenizer, is_chat), not is_chat, tokenizer)[0]


def encode_prompt(row: dict[str, Any], renderer: Renderer, tokenizer: Any) -> tuple[str, list[int]]:
    """A row of `lrlora.data.prompts` as the text before its answer, and in tokens; errors as `Renderer.asked`."""
    text, adds_special_tokens = renderer.asked(row)
    return text, _tokens(text, adds_special_tokens, tokenizer)[0]


@dataclass(frozen=True)
class EncodedRow:
    """A row in tokens.

    Args:
        pieces: input_ids and labels; several of a text that is longer than a row may be, two of a preference pair.
        length: tokens before anything was cut.
        is_empty: whether nothing but the end of an answer is learned.
    """

    pieces: list[tuple[list[int], list[int]]]
    length: int
    is_empty: bool = False


def encode_row(row: dict[str, Any], renderer: Renderer, tokenizer: Any, max_length: int) -> EncodedRow:
    """One row of a language model; the tokens of `Rendered.spans` are learned.

    A text that is longer than max_length continues in further pieces. Of a chat, a prompt or an instruction the front
    is cut; the last answer and its end never are.

    Raises:
        InputError: max_length leaves no room for the last answer, or for anything that was asked before it.
    """
    rendered = renderer.of(row)
    ids, places = _tokens(rendered.text, rendered.adds_special_tokens, tokenizer)
    spans = iter(rendered.spans)
    first, last = next(spans)
    labels = []
    for token, (start, end) in zip(ids, places, strict=True):
        while start >= last and (following := next(spans, None)):
            first, last = following
        # a token that the end of the prompt and the beginning of the answer share is learned, as in trl
        labels.append(token if start < end and first < end <= last else IGNORED)
    if "text" in row:
        parts = range(0, len(ids), max_length)
        return EncodedRow([(ids[at : at + max_length], labels[at : at + max_length]) for at in parts], max_length)
    answers = (rendered.text[start:end] for start, end in rendered.spans)
    is_empty = not any(answer.replace(tokenizer.eos_token or "", "").strip() for answer in answers)
    if len(ids) > max_length:
        begin = rendered.spans[-1][0]
        answer = sum(end > max(start, begin) for start, end in places)
        least = 1 + sum(begin - rendered.behind <= start < end <= begin for start, end in places)
        if max_length - answer < least:
            raise InputError(
                f"its answer has {answer} tokens, and max_length {max_length} leaves nothing of its instruction; pass "
                f"max_length {answer + least} or more ({len(ids)} for all of it), or leave the row out"
            )
    return EncodedRow([(ids[-max_length:], labels[-max_length:])], len(ids), is_empty)


def encode_pair(row: dict[str, Any], renderer: Renderer, tokenizer: Any, max_length: int) -> EncodedRow:
    """The chosen and the rejected answer of a preference pair, each behind the same tokens of the request.

    Where the two are longer than max_length, the front of the request is cut.

    Raises:
        InputError: max_length leaves no room for an answer.
    """
    whole = [encode_row(json.loads(row[name]), renderer, tokenizer, sys.maxsize) for name in ("chosen", "rejected")]
    (chosen, learned), (rejected, other) = (each.pieces[0] for each in whole)
    same = same_beginning(chosen, rejected)
    # where tokens of the request merge with those of an answer, they belong to the answer
    begin = min(same, first_label(learned), first_label(other))
    ends = [len(labels) - first_label(labels[::-1]) for labels in (learned, other)]
    longest = max(ends)
    if longest - begin >= max_length:
        raise InputError(
            f"its longer answer has {longest - begin} tokens, and max_length {max_length} leaves nothing of its "
            f"request; pass max_length {longest - begin + 1} or more ({longest} for all of it), or leave the row out"
        )
    first = max(0, longest - max_length)
    pieces = [
        (ids[first:end], [IGNORED] * (begin - first) + ids[begin:end])
        for ids, end in ((chosen, ends[0]), (rejected, ends[1]))
    ]
    return EncodedRow(pieces, longest, any(each.is_empty for each in whole))


def first_label(labels: Sequence[int]) -> int:
    """The place of the first token that is learned."""
    return next(n for n, label in enumerate(labels) if label != IGNORED)


def _tokens(text: str, adds_special_tokens: bool, tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokens of a text, and the characters of each; without what a tokenizer of sentences adds at the end."""
    made = tokenizer(
        text, add_special_tokens=adds_special_tokens, return_offsets_mapping=True, truncation=False, verbose=False
    )
    ids, places = list(made["input_ids"]), [tuple(place) for place in made["offset_mapping"]]
    while adds_special_tokens and len(ids) > 1 and places[-1][0] == places[-1][1]:
        ids, places = ids[:-1], places[:-1]
    return ids, places
