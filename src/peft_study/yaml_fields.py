"""YAML into dataclasses, field by field: a key or value that does not fit is refused by name, with its line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator
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
    """A piece of a YAML file and its place.

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
        InputError: no such file, no YAML, or a key that occurs twice.
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
                raise InputError(f"{file}, line {key.start_mark.line + 1}: {name!r} occurs twice")
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
            near = did_you_mean(key, fields)
            raise InputError(f"{value.where}: unknown key {key!r} in {what}{near}; there are: {', '.join(fields)}")
        if key not in ready:
            chosen[key] = _fitted(hints[key], value, f"{key!r} of {what}")
    for name, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in chosen:
            raise InputError(f"{piece.where}: {what} needs the key {name!r}")
    with placed(piece, what):
        return cls(**chosen)


@contextlib.contextmanager
def placed(piece: Marked, what: str | None = None) -> Iterator[None]:
    """Put the place in the file before the message of an InputError, and what it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(": ".join(filter(None, (piece.where, what, str(error))))) from error


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """The choice that a misspelt name is near to, as a part of a sentence; "" where none is."""
    near = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_type(kind: Any, value: Any, what: str) -> None:
    """Check a plain value against an annotation; nothing is converted: 16 stays 16.

    Raises:
        InputError: a value of another type.
    """
    try:
        _fitted(kind, _marked(value), what)
    except InputError as error:
        raise InputError(str(error).removeprefix(": ")) from error


def takes_a_list(kind: Any) -> bool:
    """Whether a list is a value of a field with this annotation."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return any(takes_a_list(each) for each in typing.get_args(kind))
    return kind is Any or (origin or kind) in (list, tuple, set)


def _marked(value: Any) -> Marked:
    if isinstance(value, dict):
        return Marked({key: _marked(each) for key, each in value.items()}, "")
    return Marked([_marked(each) for each in value] if isinstance(value, list | tuple) else value, "")


def _fitted(kind: Any, piece: Marked, what: str) -> Any:
    value = piece.value
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return piece.plain()
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _first_that_fits([k for k in inner if k is not type(None)], piece, what)
    if origin is typing.Literal and any(_is_choice(value, each) for each in inner):
        return value
    if (origin or kind) in (tuple, list) and isinstance(value, list):
        each_kind = inner[0] if inner else Any
        return tuple(_fitted(each_kind, each, what) for each in value)
    if (origin or kind) is dict and isinstance(value, dict):
        return piece.plain()
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise InputError(f"{piece.where}: {what} must be {_named(kind)}, got {_short(piece.plain())}{_advice(kind, piece)}")


def _first_that_fits(kinds: list[Any], piece: Marked, what: str) -> Any:
    if len(kinds) == 1:
        return _fitted(kinds[0], piece, what)
    for kind in kinds:
        with contextlib.suppress(InputError):
            return _fitted(kind, piece, what)
    names = " or ".join(_named(kind) for kind in kinds)
    raise InputError(f"{piece.where}: {what} must be {names}, got {_short(piece.plain())}")


def _is_choice(value: Any, choice: Any) -> bool:
    # PEFT writes a choice with a number in it as 'pissa_niter_[number of iters]'
    if isinstance(value, str) and isinstance(choice, str) and "[" in choice:
        return value.startswith(choice.split("[")[0])
    return type(value) is type(choice) and value == choice


def _advice(kind: Any, piece: Marked) -> str:
    """How to write what was meant, where that can be seen."""
    value = piece.value
    if typing.get_origin(kind) is tuple and not isinstance(value, dict | list) and value is not None:
        return f"; write it as a list: [{value}]"
    if kind in (int, float) and isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", value, re.I):
        return "; write it without quotes"
    if kind is int and isinstance(value, float) and math.isfinite(value) and value == int(value):
        return f"; write {int(value)}"
    if kind is str and isinstance(value, bool | int | float):
        return "; put it into quotes: YAML reads yes, no, on, off and numbers as what they are"
    if kind is float and isinstance(value, float):
        return "; it must be finite"
    if kind is bool and isinstance(value, str):
        return "; write true or false, without quotes"
    return ""


def _named(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return ("one of " if len(inner) > 1 else "") + ", ".join(map(repr, inner))
    if (origin or kind) in (tuple, list):
        return f"a list, each {_named(inner[0])}" if inner else "a list"
    if (origin or kind) is dict:
        return "a mapping"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(kind, f"a {getattr(kind, '__name__', kind)}, which a study file cannot hold")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
