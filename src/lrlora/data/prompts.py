"""Rows that are to be answered: the formats of training rows, without their answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

from lrlora.data.formats import FORMATS, is_of_messages, messages_of, tools_of, with_system
from lrlora.data.tables import Table, texts
from lrlora.errors import InputError

Written = Literal["auto", "request", "text"]
Prompt = dict[str, Any]
_ANSWERS = ("completion", "output", "chosen", "rejected", "label")


def request(text: str, written: Written = "auto") -> Prompt:
    """A text of the user as a prompt: a request, which is written as in training, or with "text" a beginning.

    Example:
        >>> request("Name a colour.")
        {'instruction': 'Name a colour.', 'input': ''}
    """
    return {"text": text} if written == "text" else {"instruction": text, "input": ""}


def prompts_of(table: Table, column: str | None, written: Written, notes: list[str]) -> list[Prompt]:
    """The prompts of a table, one of every row.

    Args:
        table: of any format of a language model's rows. Columns with answers need not be there and are not read; of a
            chat whose last message is the assistant's that message is left out.
        column: one column of text to read instead; it is continued as it is.
        written: "request" answers rows of plain text, and the column, as an instruction; else they are continued.
        notes: gets what the user should know.

    Returns:
        Rows for `lrlora.data.render.Renderer.asked`, without answers.

    Raises:
        InputError: none of the formats, or a row that is not of its format, by number.
    """
    found = column or next((name for name in FORMATS if name in table.columns), None)
    if found is None or found not in table.columns:
        raise InputError(
            f"{table.where}: no column {column or 'of prompts'}, got columns {', '.join(table.columns)}; needed one of "
            f"{', '.join(FORMATS)}, or pass text_column"
        )
    read, also, said = _READERS[found] if column is None else _READERS["text"]
    made, how = read(table, found, notes), said
    if "text" in made[0] and written == "request":
        made, how = [request(each["text"]) for each in made], "requests; they are answered as instructions"
    notes.append(f"{table.where}: {len(made)} prompts read as {how}")
    if unread := sorted(set(table.columns) - {found, *also, *_ANSWERS}):
        notes.append(f"{table.where}: not read: {', '.join(unread)}")
    return made


def _chats(table: Table, column: str, notes: list[str]) -> list[Prompt]:
    if not is_of_messages(table.columns[column][0]) and column == "prompt":
        return [{"prompt": text} for text in texts(table, column, notes)]
    made = []
    for position, (value, tools) in enumerate(zip(table.columns[column], tools_of(table), strict=True)):
        messages = messages_of(table, position, value)
        if column != "prompt":
            messages = with_system(table, position, messages)
        if messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if not messages:
            raise table.error(position, "has no message before the answer")
        made.append({"messages": json.dumps(messages, ensure_ascii=False), "tools": tools})
    return made


def _instructions(table: Table, column: str, notes: list[str]) -> list[Prompt]:
    asked = texts(table, column, notes)
    more = texts(table, "input", notes, may_lack=True) if "input" in table.columns else [""] * len(table)
    return [{"instruction": one, "input": other} for one, other in zip(asked, more, strict=True)]


def _texts(table: Table, column: str, notes: list[str]) -> list[Prompt]:
    return [{"text": text} for text in texts(table, column, notes)]


_READERS: dict[str, tuple[Callable[[Table, str, list[str]], list[Prompt]], tuple[str, ...], str]] = {
    "messages": (_chats, ("system", "tools"), "chats; the next message of the assistant is written"),
    "conversations": (_chats, ("system", "tools"), "chats; the next message of the assistant is written"),
    "prompt": (_chats, ("tools",), "prompts; they are continued as in training"),
    "instruction": (_instructions, ("input",), "instructions (Alpaca)"),
    "text": (_texts, (), "plain text; it is continued"),
}
"""By format: how it is read, its other columns, and what is said of it."""
