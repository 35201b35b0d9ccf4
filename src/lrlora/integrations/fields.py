"""Fields of LRLoraConfig under a key of another tool: which are there, and what a misspelt one means."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from lrlora.errors import InputError, meant
from lrlora.tuner.config import LRLoraConfig


def fields_without(elsewhere: Iterable[str]) -> dict[str, dataclasses.Field[Any]]:
    """The fields of LRLoraConfig, by name, but for those that a tool has a setting of its own for."""
    left_out = {*elsewhere, "init_lora_weights", "config_version"}
    own = LRLoraConfig.__annotations__.keys() - left_out
    return {field.name: field for field in dataclasses.fields(LRLoraConfig) if field.name in own}


def check_names(given: Iterable[str], own: Iterable[str], elsewhere: dict[str, str], place: str) -> None:
    """Refuse names that are no fields there.

    Args:
        given: the names that a user wrote.
        own: the names that there are.
        elsewhere: fields that the tool has a setting of its own for, and that setting.
        place: where the user wrote them.

    Raises:
        InputError: one of them, with the tool's own setting or what is probably meant.
    """
    own = list(own)
    for name in given:
        if name in elsewhere:
            raise InputError(f"{place} has no {name}; the setting for it is {elsewhere[name]}")
        if name not in own:
            raise InputError(f"{place} has no {name}; did you mean {meant(name, own) or ', '.join(own)}?")


def config_of_loaded(model: Any, folder: str) -> LRLoraConfig:
    """The config of an adapter that was loaded from a folder.

    Raises:
        InputError: the adapter is of another method.
    """
    found = model.peft_config["default"]
    if not isinstance(found, LRLoraConfig):
        raise InputError(
            f"{folder} holds an adapter of the method {found.peft_type.value}, got lrlora as the method to go on with; "
            "name a folder of LRLORA, or the adapter's own method"
        )
    return found
