"""Preference pairs: a chosen and a rejected answer to the same request, in the formats that are shared."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lrlora.data.formats import messages_of, tools_of, with_system
from lrlora.data.render import request_text, same_beginning
from lrlora.data.tables import Table
from lrlora.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

_REQUESTS = ("prompt", "messages", "conversations", "instruction")
_READ = ("chosen", "rejected", "system", "tools", "input")


def is_of_pairs(table: Table) -> bool:
    """Whether a table has the columns of preference pairs."""
    return {"chosen", "rejected"} <= set(table.columns)


def pairs_of(table: Table, notes: list[str]) -> Dataset:
    """The rows of a table of preference pairs.

    The request is in a column prompt (text or messages), messages, conversations, or instruction and input; or it is
    the beginning that both answers have in common.

    Args:
        table: with the columns chosen and rejected: texts, messages, or one message each.
        notes: gets what the user should know.

    Returns:
        Rows with `row`, their number, and `chosen` and `rejected`, each a row of `lrlora.data.formats.rows_of` as JSON.

    Raises:
        InputError: a row that is no pair, by number.
    """
    from datasets import Dataset

    if not is_of_pairs(table):
        raise InputError(
            f"{table.where}: no preference pairs, got the columns {', '.join(table.columns)}; needed chosen and "
            'rejected, such as {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}'
        )
    requests = [name for name in _REQUESTS if name in table.columns]
    if len(requests) > 1:
        raise InputError(f"{table.where}: the request is in several columns, {', '.join(requests)}; keep one of them")
    if unread := sorted(set(table.columns) - {*requests, *_READ}):
        notes.append(f"{table.where}: not read: {', '.join(unread)}")
    tools, same = tools_of(table), 0
    made: dict[str, list[Any]] = {"chosen": [], "rejected": [], "row": list(table.numbers)}
    for position in range(len(table)):
        given = {name: values[position] for name, values in table.columns.items()}
        pair = _pair(table, position, given, requests[0] if requests else None)
        same += pair[0] == pair[1]
        for name, each in zip(("chosen", "rejected"), pair, strict=True):
            row = each if "prompt" in each else {"messages": json.dumps(each["messages"]), "tools": tools[position]}
            made[name].append(json.dumps(row, ensure_ascii=False))
    if same:
        notes.append(f"{table.where}: in {same} rows the chosen answer is the rejected one: nothing is learned there")
    return Dataset.from_dict(made)


def _pair(table: Table, position: int, given: dict[str, Any], request: str | None) -> list[dict[str, Any]]:
    answers = [given["chosen"], given["rejected"]]
    if request is None:
        return _with_common_beginning(table, position, answers)
    asked = given[request]
    if isinstance(asked, str) and request == "prompt":
        if not all(isinstance(answer, str) for answer in answers):
            raise table.error(position, "has a prompt that is a text, and answers that are none")
        return [{"prompt": asked, "completion": answer} for answer in answers]
    if request == "instruction":
        asked = [{"role": "user", "content": request_text(asked, given.get("input"))}]
    before = with_system(table, position, messages_of(table, position, asked))
    return [_chat(table, position, before, _answer(table, position, answer)) for answer in answers]


def _with_common_beginning(table: Table, position: int, answers: list[Any]) -> list[dict[str, Any]]:
    if all(isinstance(answer, str) for answer in answers):
        begin = answers[0][: same_beginning(*answers)]
        # a word that both begin with belongs to the answers
        begin = begin[: begin.rfind(" ")] if " " in begin else ""
        if not begin:
            raise table.error(position, "has no prompt, and its answers have no beginning in common")
        return [{"prompt": begin, "completion": answer[len(begin) :]} for answer in answers]
    chats = [messages_of(table, position, answer) for answer in answers]
    count = min(same_beginning(*chats), *(len(chat) - 1 for chat in chats))
    if count == 0:
        raise table.error(position, "has no prompt, and its chats have no message in common")
    return [_chat(table, position, chat[:count], chat[count:]) for chat in chats]


def _answer(table: Table, position: int, answer: Any) -> list[dict[str, Any]]:
    if isinstance(answer, str):
        answer = [{"role": "assistant", "content": answer}]
    return messages_of(table, position, [answer] if isinstance(answer, dict) else answer)


def _chat(table: Table, position: int, before: list[dict[str, Any]], answer: list[dict[str, Any]]) -> dict[str, Any]:
    if [each["role"] for each in answer] != ["assistant"]:
        raise table.error(
            position, f"has an answer of {len(answer)} messages; needed one of the assistant, chosen and rejected"
        )
    return {"messages": [*({**each, "weight": 0} for each in before), {**answer[0], "weight": 1}]}
