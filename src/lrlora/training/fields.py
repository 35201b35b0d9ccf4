"""The fields of a dataclass of settings: what each says of itself, its type, and names of modules among the values."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection
from dataclasses import field
from typing import Any, get_type_hints

from lrlora.errors import InputError
from lrlora.training.placement import ALL_LINEAR

UNORDERED = ("target_modules", "exclude_modules")
"""Settings that are sets of names, or one word."""


def flag(default: Any, help: str, is_free: bool = False, is_place: bool = False) -> Any:
    """A setting: `is_free` does not change what is trained, `is_place` may be a path here, or a name of the hub."""
    return field(default=default, metadata={"help": help, "is_free": is_free, "is_place": is_place})


def typed_fields(cls: type, without: Collection[str] = ()) -> list[dataclasses.Field[Any]]:
    """Copies of a dataclass's fields, each with its type instead of the name of its type."""
    types, found = get_type_hints(cls), []
    for each in dataclasses.fields(cls):
        if each.name not in without:
            found.append(copy.copy(each))
            found[-1].type = types[each.name]
    return found


def names_of_modules(field: str, words: list[str] | str | None) -> list[str] | str | None:
    """Names of modules as PEFT takes them: one word may be a regular expression, or all-linear."""
    if words is None or isinstance(words, str):
        return words
    alone = [word for word in words if word == ALL_LINEAR or set(word) & set("*+?[](){}|^$\\")]
    if alone and len(words) > 1:
        raise InputError(
            f"{field} takes names, or one word that is {ALL_LINEAR} or a regular expression, got {alone[0]!r} among "
            f"{len(words)} words; join expressions with | in one"
        )
    return alone[0] if alone else words
