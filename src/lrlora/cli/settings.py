"""Flags for settings that a dataclass of the library describes, and settings from a file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Optional, Union, get_args, get_origin

from lrlora.errors import InputError, meant
from lrlora.files import explained
from lrlora.saved.names import CONFIG
from lrlora.saved.run import RunFolder
from lrlora.tuner.lora_fields import default_of

Fields = Sequence[dataclasses.Field[Any]]
_OF_THE_RUN = ("out", "overwrite")
"""What a run's config.json says of the run itself, not of how to repeat it."""


def flags_of(name: str, settings: Fields, more: Iterable[dataclasses.Field[Any]], hidden: Fields = ()) -> type:
    """A dataclass of flags for `lrlora.cli.flags.parse`: settings, and further flags; the help leaves out the hidden.

    A flag has one type. A setting that is a list, or one of its entries, takes words; another one of several types, and
    a dictionary, takes JSON or a word.
    """
    return dataclasses.make_dataclass(
        name,
        [(each.name, _type_of_flag(each.type), _flag_of(each, each in hidden)) for each in (*settings, *more)],
    )


def values_of(flags: Any, settings: Fields) -> dict[str, Any]:
    """The settings among parsed flags, by name; what was typed as JSON is read."""
    found = {each.name: getattr(flags, each.name) for each in settings}
    return {each.name: _read(found[each.name]) if _is_json(each.type) else found[each.name] for each in settings}


def given(settings: Any) -> dict[str, Any]:
    """What of a dataclass of settings differs from its defaults, by name."""
    values = {each.name: (getattr(settings, each.name), default_of(each)) for each in dataclasses.fields(settings)}
    return {name: value for name, (value, default) in values.items() if value != default}


def words_of_file(file: str, settings: Fields) -> list[str]:
    """The flags that a file of settings stands for.

    Args:
        file: YAML or JSON with settings by the names of their flags; or a run folder or its config.json, of which all
            settings are taken but where it was written.
        settings: that there are.

    Raises:
        InputError: no such file, no settings in it, or a name or a value that no setting has.
    """
    names = [each.name for each in settings]
    words = []
    for name, value in _settings_in(Path(file).expanduser()).items():
        if name not in names:
            near = meant(str(name), names)
            raise InputError(f"{file}: no such setting: {name}" + (f"; did you mean {near}?" if near else ""))
        field = settings[names.index(name)]
        if value is None and default_of(field) is not None:
            raise InputError(f"{file}: {name} has no value; leave it out for its default, {default_of(field)!r}")
        if value is not None and value != []:
            words += [f"--{name}", *_words(value, field.type)]
    return words


def is_run(file: str) -> bool:
    """Whether a file of settings is a run folder, or the config.json of one."""
    return _run_in(Path(file).expanduser()) is not None


def _run_in(path: Path) -> RunFolder | None:
    run = RunFolder(path if path.is_dir() else path.parent)
    return run if run.is_run and (path.is_dir() or path.name == CONFIG) else None


def _settings_in(path: Path) -> dict[str, Any]:
    found = _read_settings(path)
    # arguments of a trainer are flags of their own
    trainer = found.pop("trainer", None) or {}
    if not isinstance(trainer, dict):
        raise InputError(f"{path}: trainer needs arguments by name, such as 'optim: adafactor', got {trainer!r}")
    return {**found, **trainer}


def _read_settings(path: Path) -> dict[str, Any]:
    if (run := _run_in(path)) is not None:
        return {name: value for name, value in run.settings.items() if name not in _OF_THE_RUN}
    import yaml

    with explained(path):
        text = path.read_text(encoding="utf-8")
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is neither YAML nor JSON: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} needs settings by name, such as 'r: 4', got {type(found).__name__}")
    return found


def _words(value: Any, kind: Any) -> list[str]:
    if isinstance(value, list) and not _is_json(kind):
        return [word for each in value for word in _words(each, kind)]
    return [value if isinstance(value, str) else json.dumps(value)]


def _flag_of(field: dataclasses.Field[Any], is_hidden: bool = False) -> Any:
    default = default_of(field)
    if _is_json(field.type) and not isinstance(default, str | None):
        default = json.dumps(default)
    metadata = {"help": argparse.SUPPRESS if is_hidden else field.metadata["help"]}
    if default is not None and get_origin(_options(_type_of_flag(field.type))[0]) is list:
        words = default if isinstance(default, list) else [default]
        # HfArgumentParser takes the default of a list only from a factory
        return dataclasses.field(default_factory=lambda: list(words), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _type_of_flag(kind: Any) -> Any:
    if _is_json(kind):
        return Optional[str]
    several = _options(kind)
    if of_list := [each for each in several if get_origin(each) is list]:
        return Optional[of_list[0]]
    return Optional[several[0]] if type(None) in get_args(kind) else kind


def _is_json(kind: Any) -> bool:
    """Whether a flag has to tell several types apart, or is a dictionary: not one type, and not a list or its entry."""
    several = _options(kind)
    if any(each is dict or get_origin(each) is dict for each in several):
        return True
    entries = [each for each in several if [each] not in [list(get_args(other)) for other in several]]
    return len(entries) > 1


def _options(kind: Any) -> list[Any]:
    """The types that a value may have, but None."""
    is_union = get_origin(kind) is Union or isinstance(kind, types.UnionType)
    return [each for each in get_args(kind) if each is not type(None)] if is_union else [kind]


def _read(word: Any) -> Any:
    try:
        return json.loads(word.lower() if word in ("True", "False") else word)
    except (TypeError, ValueError):
        return word
