"""YAML into dataclasses, field by field: whatever does not fit is refused by name, with its line."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lrlora.errors import InputError

Target = TypeVar("Target")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 1e-3 for a string; people do not."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.[\d_]*|\.\d+|\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


@dataclasses.dataclass(frozen=True)
class Marked:
    """A piece of a YAML file and where it stands.

    Args:
        value: a dict or a list of Marked, or a plain value.
        where: file and line, for messages.
    """

    value: Any
    where: str

    def plain(self) -> Any:
        """The piece as dicts, lists and plain values."""
        if isinstance(self.value, dict):
            return {key: piece.plain() for key, piece in self.value.items()}
        return [piece.plain() for piece in self.value] if isinstance(self.value, list) else self.value


def read(path: Path) -> Marked:
    """Read a YAML file.

    Raises:
        InputError: no such file, no YAML, or a key that stands twice.
    """
    if not path.is_file():
        raise InputError(f"no such study file: {path}")
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            raise InputError(f"{path} is empty")
        return _mark(loader, node, str(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def _mark(loader: _Loader, node: yaml.Node, file: str) -> Marked:
    where = f"{file}, line {node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        pieces: dict[str, Marked] = {}
        for key, value in node.value:
            name = str(loader.construct_object(key))
            if name in pieces:
                raise InputError(f"{file}, line {key.start_mark.line + 1}: {name!r} stands twice")
            pieces[name] = dataclasses.replace(
                _mark(loader, value, file), where=f"{file}, line {key.start_mark.line + 1}"
            )
        return Marked(pieces, where)
    if isinstance(node, yaml.SequenceNode):
        return Marked([_mark(loader, value, file) for value in node.value], where)
    return Marked(loader.construct_object(node), where)


def into(cls: type[Target], piece: Marked, what: str, **ready: Any) -> Target:
    """A dataclass from a mapping of YAML.

    Args:
        cls: the dataclass; its annotations are checked.
        piece: the mapping.
        what: what it is, for messages: "the study", "task 'rte'".
        ready: fields that are already read; their keys in the mapping are skipped.

    Raises:
        InputError: an unknown key, a missing one, a value of another type, or what the dataclass itself refuses.
    """
    if not isinstance(piece.value, dict):
        raise InputError(f"{piece.where}: {what} must be a mapping of keys to values, got {_short(piece.plain())}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    chosen = dict(ready)
    for key, value in piece.value.items():
        if key not in fields:
            raise InputError(f"{value.where}: unknown key {key!r} in {what}; there are: {', '.join(fields)}")
        if key not in ready:
            chosen[key] = _fitted(hints[key], value, f"{key!r} of {what}")
    for name, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in chosen:
            raise InputError(f"{piece.where}: {what} needs the key {name!r}")
    try:
        return cls(**chosen)
    except InputError as error:
        raise InputError(f"{piece.where}: {what}: {error}") from error


def _fitted(kind: Any, piece: Marked, what: str) -> Any:
    value = piece.value
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return piece.plain()
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _first_that_fits([k for k in inner if k is not type(None)], piece, what)
    if origin is typing.Literal and value in inner:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_fitted(inner[0], each, what) for each in value)
    if origin is dict and isinstance(value, dict):
        return piece.plain()
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise InputError(f"{piece.where}: {what} must be {_named(kind)}, got {_short(piece.plain())}")


def _first_that_fits(kinds: list[Any], piece: Marked, what: str) -> Any:
    for kind in kinds[:-1]:
        try:
            return _fitted(kind, piece, what)
        except InputError:
            continue
    return _fitted(kinds[-1], piece, what)


def _named(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin is tuple:
        return f"a list, each {_named(inner[0])}"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return "a mapping" if origin is dict else names.get(kind, str(kind))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
