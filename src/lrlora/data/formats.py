"""The formats that rows of a language model come in, read off their columns, and each in one shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lrlora.data.tables import Table, shortened, texts
from lrlora.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

Format = Literal["messages", "conversations", "prompt", "instruction", "text"]
Message = dict[str, Any]


class Described(NamedTuple):
    """How a format is told.

    Args:
        columns: that a table of it has.
        said: what the user reads of it.
        example: one row.
    """

    columns: tuple[str, ...]
    said: str
    example: str


FORMATS: dict[Format, Described] = {
    "messages": Described(
        ("messages",),
        "chats (messages with role and content)",
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}',
    ),
    "conversations": Described(
        ("conversations",),
        "chats (ShareGPT: conversations with from and value)",
        '{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}',
    ),
    "prompt": Described(
        ("prompt", "completion"), "prompts and completions", '{"prompt": "The sky is", "completion": " blue."}'
    ),
    "instruction": Described(
        ("instruction", "output"),
        "instructions (Alpaca)",
        '{"instruction": "Translate.", "input": "Hallo", "output": "Hello"}',
    ),
    "text": Described(("text",), "plain text", '{"text": "Once upon a time ..."}'),
}
"""In the order in which they are looked for."""

_SHAPES = {
    "messages": "chats; what the assistant says is learned",
    "prompt": "prompts and completions; the completions are learned",
    "instruction": "instructions; the outputs are learned",
    "text": "plain text; all of it is learned",
    "chosen": "preference pairs; the chosen answers are preferred to the rejected ones",
}

ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "chatgpt": "assistant", "bot": "assistant", "system": "system", "developer": "developer", "tool": "tool",
    "observation": "tool", "function_response": "tool", "function_call": "function_call",
}  # fmt: skip
"""Names of roles in data that is shared, and those of chat templates; a function call is the assistant's."""


def format_of(table: Table) -> Format | None:
    """The format of a table by its columns; None where it is none, or where a label says that it is of another kind.

    Raises:
        InputError: preference pairs read as something else, or chats with a verdict.
    """
    columns = set(table.columns)
    if {"chosen", "rejected"} <= columns:
        raise InputError(
            f"{table.where}: preference pairs (chosen, rejected) are no chats: to train on all of them would teach "
            "what was rejected; leave kind out, or keep the chosen answers as messages"
        )
    if "label" in columns and {"messages", "completion", "conversations"} & columns:
        raise InputError(
            f"{table.where}: chats with a verdict (column 'label'), which `lrlora train` does not train on; keep the "
            "rows that are good, without 'label', or give trl's KTOTrainer the adapter as peft_config=LRLoraConfig(...)"
        )
    for name, each in FORMATS.items():
        if set(each.columns) <= columns:
            return None if name == "text" and "label" in columns else name
    return None


def rows_of(table: Table, columns: tuple[str, ...] | None, notes: list[str]) -> Dataset:
    """The rows of a table in one of four shapes.

    Args:
        table: of any of the formats.
        columns: one column of text, or those of prompt and completion, where the user named them.
        notes: gets what the user should know.

    Returns:
        Rows with `row`, their number, and either `messages` and `tools` as JSON, `prompt` and `completion`, `text`, or
        `instruction`, `input` and `answer`.

    Raises:
        InputError: none of the formats, or a row that is not of its format, by number.
    """
    from datasets import Dataset

    if columns is None:
        chosen = format_of(table)
    else:
        chosen, table = _renamed(table, columns)
    if chosen is None:
        examples = "".join(f"\n  {each.said}: {each.example}" for each in FORMATS.values())
        raise InputError(
            f"{table.where}: no rows of a language model, got the columns {', '.join(table.columns)}; needed one of: "
            f"{examples}\nor pass text_columns: one column of text, or those of prompt and completion"
        )
    if table.rows_are:
        notes.append(f"{table.where}: its {len(table)} {table.rows_are} are the rows")
    fields = _READERS[chosen](table, notes)
    used = {*FORMATS[chosen].columns, *fields, *_ALSO_READ.get(chosen, ())}
    if unread := sorted(name for name in table.columns if name not in used and columns is None):
        notes.append(f"{table.where}: not read: {', '.join(unread)}")
    return Dataset.from_dict({**fields, "row": list(table.numbers)})


def said_of(rows: Dataset) -> str:
    """What rows from `rows_of` or `lrlora.data.preferences.pairs_of` were read as, and what of them is learned."""
    return next(said for column, said in _SHAPES.items() if column in rows.column_names)


def is_of_messages(value: Any) -> bool:
    """Whether a value is a list of messages, and not a text."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _renamed(table: Table, columns: tuple[str, ...]) -> tuple[Format, Table]:
    if missing := [column for column in columns if column not in table.columns]:
        raise InputError(f"{table.where}: no column {missing[0]!r}, got columns {', '.join(table.columns)}")
    names = ("text",) if len(columns) == 1 else ("prompt", "completion")
    values = {name: table.columns[column] for name, column in zip(names, columns, strict=True)}
    chosen: Format = "text" if len(columns) == 1 else "prompt"
    return chosen, Table(table.where, values, table.numbers, {}, table.is_text)


def _chats(table: Table, notes: list[str]) -> dict[str, list[Any]]:
    """The columns messages or conversations, with system and tools where they are there."""
    column = "messages" if "messages" in table.columns else "conversations"
    messages = []
    for position, value in enumerate(table.columns[column]):
        found = with_system(table, position, messages_of(table, position, value))
        if not any(each["role"] == "assistant" and each["weight"] for each in found):
            raise table.error(position, "has no message of the assistant that could be learned")
        messages.append(json.dumps(found, ensure_ascii=False))
    return {"messages": messages, "tools": tools_of(table)}


def _pairs(table: Table, notes: list[str]) -> dict[str, list[Any]]:
    """The columns prompt and completion: texts, or messages of which only the completion's are learned."""
    if not is_of_messages(table.columns["prompt"][0]):
        return {"prompt": texts(table, "prompt", notes), "completion": texts(table, "completion", notes)}
    messages = []
    for position, (prompt, completion) in enumerate(
        zip(table.columns["prompt"], table.columns["completion"], strict=True)
    ):
        before = [{**each, "weight": 0} for each in messages_of(table, position, prompt)]
        after = messages_of(table, position, completion)
        messages.append(json.dumps([*before, *after], ensure_ascii=False))
    return {"messages": messages, "tools": tools_of(table)}


def _texts(table: Table, notes: list[str]) -> dict[str, list[Any]]:
    return {"text": texts(table, "text", notes)}


def _alpaca(table: Table, notes: list[str]) -> dict[str, list[Any]]:
    has_input = "input" in table.columns
    return {
        "instruction": texts(table, "instruction", notes),
        "input": texts(table, "input", notes, may_lack=True) if has_input else [""] * len(table),
        "answer": texts(table, "output", notes),
    }


_READERS: dict[Format, Callable[[Table, list[str]], dict[str, list[Any]]]] = {
    "messages": _chats, "conversations": _chats, "prompt": _pairs, "instruction": _alpaca, "text": _texts,
}  # fmt: skip
_ALSO_READ: dict[Format, tuple[str, ...]] = {
    "messages": ("system", "tools"), "conversations": ("system", "tools"), "prompt": ("tools",),
}  # fmt: skip


def messages_of(table: Table, position: int, value: Any) -> list[Message]:
    """A chat by the names of chat templates, each message with the weight of its loss.

    Raises:
        InputError: no chat, by number of row and message.
    """
    if not is_of_messages(value):
        raise table.error(position, "needs a list of messages with role and content (or from and value)")
    return [_message(table, position, number, each) for number, each in enumerate(value, 1)]


def with_system(table: Table, position: int, messages: list[Message]) -> list[Message]:
    """A chat behind the message of the column system, where a row has one."""
    system = table.columns["system"][position] if "system" in table.columns else None
    if isinstance(system, str) and system.strip():
        return [{"role": "system", "content": system, "weight": 0}, *messages]
    return messages


def _message(table: Table, position: int, number: int, given: dict[str, Any]) -> Message:
    """One message by the names of chat templates, with the weight of its loss: 1 of the assistant, else 0."""

    def refuse(problem: str) -> InputError:
        return table.error(position, f"has a message {number} {problem}")

    # a table of parquet gives every message the keys of all of them
    given = {key: each for key, each in given.items() if each is not None}
    role = given.get("role", given.get("from"))
    if role not in ROLES:
        raise refuse(f"of role {role!r}, needed one of: {', '.join(ROLES)}")
    content = _content(given.get("content", given.get("value")), refuse)
    calls = given.get("tool_calls")
    if ROLES[role] == "function_call":
        calls, content = _calls(content, refuse), ""
    named = "assistant" if ROLES[role] == "function_call" else ROLES[role]
    if content is None and not calls:
        raise refuse("without content")
    weight = given.get("weight", given.get("loss_weight", 1 if named == "assistant" else 0))
    if weight not in (0, 1):
        raise refuse(f"of weight {weight!r}; a message is learned (1) or not (0)")
    if weight and named != "assistant":
        raise refuse(f"of role {role!r} with a weight above 0; only messages of the assistant are learned")
    extra = {key: given[key] for key in ("name", "tool_call_id", "reasoning_content") if key in given}
    return {
        "role": named, "content": content or "", **({"tool_calls": calls} if calls else {}), **extra,
        "weight": int(weight),
    }  # fmt: skip


def _content(value: Any, refuse: Callable[[str], InputError]) -> str | None:
    """A text, or the texts of a list of parts."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict):
        # what a tool gave back
        return json.dumps(value, ensure_ascii=False)
    if is_of_messages(value):
        other = [each.get("type") for each in value if each.get("type") != "text"]
        if other:
            raise refuse(f"with a part of type {other[0]!r}; only text is read")
        parts = [each.get("text", each.get("value")) for each in value]
        if all(isinstance(part, str) for part in parts):
            return "".join(parts)
    raise refuse(f"whose content is a {type(value).__name__}, needed a text: {shortened(value)}")


def _calls(content: str | None, refuse: Callable[[str], InputError]) -> list[dict[str, Any]]:
    """The calls that a message of role function_call is: one, or a list of them, as JSON."""
    try:
        found = json.loads(content or "")
    except ValueError as error:
        raise refuse(f"that is a function call but not JSON: {error}") from error
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) and {"name", "arguments"} <= call.keys() for call in calls):
        raise refuse(f"that is a function call without name and arguments: {shortened(content)}")
    for call in calls:
        if isinstance(call["arguments"], str):
            try:
                call["arguments"] = json.loads(call["arguments"])
            except ValueError as error:
                raise refuse(f"whose call has arguments that are not JSON: {error}") from error
    return [{"type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}} for c in calls]


def tools_of(table: Table) -> list[str]:
    """The tools of every row as JSON, "" where it has none.

    Raises:
        InputError: no list of functions, by number of row.
    """
    found = []
    for position, value in enumerate(table.columns.get("tools", [None] * len(table))):
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except ValueError as error:
                raise table.error(position, f"has tools that are not JSON ({error})") from error
        if value and not (isinstance(value, list) and all(isinstance(tool, dict) for tool in value)):
            raise table.error(position, "needs tools as a list of functions")
        tools = [tool if "function" in tool else {"type": "function", "function": tool} for tool in value or []]
        found.append(json.dumps(tools, ensure_ascii=False) if tools else "")
    return found
