"""Fields of LRLoraConfig under a key of another tool: which are there, and what a misspelt one means."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NoReturn

from peft import PeftConfig

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
    return _ours(model.peft_config["default"], folder)


def config_of_saved(folder: str) -> LRLoraConfig:
    """The config of the adapter in a folder.

    Raises:
        InputError: the adapter is of another method.
    """
    return _ours(PeftConfig.from_pretrained(folder), folder)


def _ours(found: Any, folder: str) -> LRLoraConfig:
    if not isinstance(found, LRLoraConfig):
        raise InputError(
            f"{folder} holds an adapter of the method {found.peft_type.value}, got lrlora as the method to go on with; "
            "name a folder of LRLORA, or the adapter's own method"
        )
    return found


def refuse_without(tool: str, package: str, error: ModuleNotFoundError) -> NoReturn:
    """Say what to install, where an import found no tool.

    Args:
        tool: its name on PyPI.
        package: the name that is imported.
        error: of the import.

    Raises:
        InputError: the tool is not there.
        ModuleNotFoundError: it is, but a package that it needs is not.
    """
    if (error.name or "").partition(".")[0] != package:
        raise error
    raise InputError(
        f'this module is for {tool}, which is not installed here: pip install {tool}, then "peft>=0.21,<0.22" '
        "(docs/integrations.md)"
    ) from error
