"""Tables and lists of a model card, in Markdown, without a path of this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

Rows = Sequence[Sequence[Any]]


def table(headings: Sequence[str], rows: Rows) -> str:
    """A table.

    Example:
        >>> print(table(("a", "b"), [("x|y", 1)]))
        | a | b |
        |---|---|
        | x\\|y | 1 |
    """
    lines = [headings, *rows]
    written = ["| " + " | ".join(cell(value) for value in line) + " |" for line in lines]
    return "\n".join([written[0], "|" + "---|" * len(headings), *written[1:]])


def listed(values: dict[str, Any]) -> str:
    """A list of names and values.

    Example:
        >>> listed({"torch": "2.9"})
        '- torch: 2.9'
    """
    return "\n".join(f"- {name}: {cell(value)}" for name, value in values.items())


def cell(value: Any) -> str:
    """A value in a line of Markdown."""
    return " ".join(str(without_places(value)).split()).replace("|", "\\|").replace("<", "&lt;")


def without_places(value: Any) -> Any:
    """A value in which every absolute path is its last part.

    Example:
        >>> without_places({"data": "/home/me/rows.jsonl", "r": 4})
        {'data': 'rows.jsonl (local)', 'r': 4}
    """
    if isinstance(value, str) and (os.path.isabs(value) or value.startswith(("~", "./", "../"))):
        return f"{os.path.basename(value.rstrip('/'))} (local)"
    if isinstance(value, dict):
        return {without_places(name): without_places(each) for name, each in value.items()}
    return [without_places(each) for each in value] if isinstance(value, list | tuple) else value
