"""The settings of a run: which of them decide its result, and whether a run that was written before has the same."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

_WORDS = {"data": "the rows", "model": "the weights of the base model"}


@dataclass(frozen=True)
class Settings:
    """The settings of a run, and which of them decide its result.

    Args:
        values: by name, as they are in config.json.
        defaults: what a run means that was written before there was a setting.
        free: names of those that do not change what is trained: a run may be resumed with others; "trainer.optim" is an
            entry of the dictionary "trainer".
        places: names of those that may be a path on this machine.
        longer: names of numbers that may be larger than those of a finished run, which then goes on.
    """

    values: dict[str, Any]
    defaults: dict[str, Any]
    free: Collection[str]
    places: Collection[str]
    longer: Collection[str] = ()

    def is_longer(self, before: dict[str, Any]) -> bool:
        """Whether a run of these settings goes on where one of the settings `before` ended."""
        return any(_is_more(before.get(name), self.values[name]) for name in self.longer)


def changes(
    before: dict[str, Any], settings: Settings, read_before: dict[str, str], inputs: dict[str, str]
) -> dict[str, list[str]]:
    """What differs from a run that was written before: under "settings" as old -> new, under "data" in words.

    Args:
        before: its settings, as `renewed` gives them.
        settings: of the run that shall start.
        read_before: what it has read, as numbers.
        inputs: what the run that shall start reads, as numbers.
    """
    if before:
        # the first version split rows off by the seed of everything else
        before = {**settings.defaults, "split_seed": before.get("seed"), **before}
    other = [
        f"{name} {before[name]!r} -> {value!r}"
        for name, value in settings.values.items()
        if name not in settings.free
        and name in before
        and not (name in settings.longer and _is_more(before[name], value))
        and not _is_same(
            *(_deciding(name, each, settings.free) for each in (before[name], value)), is_place=name in settings.places
        )
    ]
    changed = [
        f"{_WORDS[name]} of {settings.values.get(name) or 'the demo'} changed since"
        for name, value in inputs.items()
        if name in read_before and not _is_same_input(read_before[name], value)
    ]
    return {name: found for name, found in (("settings", other), ("data", changed)) if found}


def renewed(settings: dict[str, Any], written: int) -> dict[str, Any]:
    """Settings as this version writes them."""
    if written > 2:
        return settings
    found = {name: value for name, value in settings.items() if name not in ("verbose", "json", "debug")}
    if isinstance(tau := found.get("tau"), str) and tau != "auto":
        found["tau"] = float(tau)
    for name in ("target_modules", "exclude_modules"):
        if isinstance(found.get(name), list):
            found[name] = sorted(found[name])
    return found


def _is_more(before: Any, now: Any) -> bool:
    return isinstance(before, int | float) and before > 0 and now > before


def _deciding(name: str, value: Any, free: Collection[str]) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: each for key, each in value.items() if f"{name}.{key}" not in free}


def _is_same(before: Any, now: Any, is_place: bool) -> bool:
    if before == now or not is_place or before is None or now is None:
        return before == now
    # the first version kept paths as they were typed
    return os.path.abspath(os.path.expanduser(before)) == os.path.abspath(os.path.expanduser(now))


def _is_same_input(before: str, now: str) -> bool:
    # a model of the hub has no revision before it is in the cache
    return before == now or before.startswith(f"{now}@") or now.startswith(f"{before}@")
