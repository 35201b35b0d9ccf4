"""A study file into a Study: lists in an arm become arms, and what does not fit is refused with its line."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from lrlora.errors import InputError
from peft_study import yaml_fields
from peft_study.arms import check_arm, check_field, is_grid
from peft_study.spec import Arm, Study, Task, Training
from peft_study.task import check_name
from peft_study.yaml_fields import Marked

_OWN = {field.name for field in dataclasses.fields(Arm)} - {"fields"}
"""Keys of an arm; all others are fields of its method's config."""


def read_study(path: Path | str) -> Study:
    """Read a study file.

    A list where a field of an arm takes one value is a grid: an arm for every value, named NAME-FIELDVALUE.

    Raises:
        InputError: no such file, or what does not fit, by name and with its line.
    """
    whole = yaml_fields.read(Path(path))
    if not isinstance(whole.value, dict):
        raise InputError(f"{whole.where}: a study must be a mapping of keys to values")
    pieces = [each for piece in _listed(whole, "arms") for each in _expanded(piece)]
    arms = tuple(_arm(piece) for piece in pieces)
    _check_once(arms, pieces)
    ready: dict[str, Any] = {
        "arms": arms,
        "tasks": tuple(yaml_fields.into(Task, piece, f"task {_name_in(piece)}") for piece in _listed(whole, "tasks")),
    }
    if "training" in whole.value:
        ready["training"] = yaml_fields.into(Training, whole.value["training"], "training")
    study = yaml_fields.into(Study, whole, "the study", **ready)
    for arm, piece in zip(arms, pieces, strict=True):
        for name, value in arm.fields.items():
            with yaml_fields.placed(piece.value[name], f"arm {arm.name!r}"):
                check_field(arm.method, name, value)
        with yaml_fields.placed(piece, f"arm {arm.name!r}"):
            check_arm(study, arm)
    return study


def _expanded(piece: Marked) -> list[Marked]:
    """The arms that a mapping describes: one for every combination of the values in its lists."""
    piece = _flat(piece)
    keys = piece.value if isinstance(piece.value, dict) else {}
    method, name = (keys[key].value if key in keys else None for key in ("method", "name"))
    if not isinstance(method, str) or not isinstance(name, str):
        return [piece]
    grids = {key: each for key, each in keys.items() if isinstance(each.value, list) and is_grid(method, key)}
    if not grids:
        return [piece]
    for key, each in grids.items():
        if not each.value:
            raise InputError(f"{each.where}: {key!r} of arm {name!r} is an empty list; give it values, or leave it out")
    found = []
    for values in itertools.product(*(each.value for each in grids.values())):
        chosen = dict(zip(grids, values, strict=True))
        labels = [_label(key, value.plain()) for key, value in chosen.items()]
        named = dataclasses.replace(keys["name"], value="-".join([name, *labels]))
        found.append(dataclasses.replace(piece, value={**keys, **chosen, "name": named}))
    return found


def _flat(piece: Marked) -> Marked:
    """An arm with the fields of its `config` among its other keys."""
    if not isinstance(piece.value, dict) or "config" not in piece.value:
        return piece
    config = piece.value["config"]
    what = f"{config.where}: config of arm {_name_in(piece)}"
    if not isinstance(config.value, dict):
        raise InputError(f"{what} must be a mapping of the config's fields to values, got {config.plain()!r}")
    keys = {key: each for key, each in piece.value.items() if key != "config"}
    for key, each in config.value.items():
        if key in _OWN:
            raise InputError(
                f"{each.where}: {key!r} is a key of the arm itself, not a field of its config; move it out"
            )
        if key in keys:
            raise InputError(f"{what} has {key!r}, which the arm has as well; keep one of them")
    return dataclasses.replace(piece, value={**keys, **config.value})


def _label(key: str, value: Any) -> str:
    """What tells an arm of a grid from the others: r8, tau0.02, share-block, use_rslora-true."""
    if isinstance(value, bool):
        return f"{key}-{str(value).lower()}"
    # in full: two values that are nearly the same must not get one name
    return f"{key}{value!r}" if isinstance(value, int | float) else f"{key}-{value}"


def _arm(piece: Marked) -> Arm:
    """What is no key of an arm is a field of its method's config."""
    if not isinstance(piece.value, dict):
        raise InputError(f"{piece.where}: an arm must be a mapping, got {piece.plain()!r}")
    fields = {key: each.plain() for key, each in piece.value.items() if key not in _OWN}
    known = Marked({key: each for key, each in piece.value.items() if key in _OWN}, piece.where)
    arm = yaml_fields.into(Arm, known, f"arm {_name_in(piece)}", fields=fields)
    with yaml_fields.placed(piece):
        check_name(arm.name, "name of an arm")
        if arm.c_lr_factor is not None and not arm.c_lr_factor > 0:
            raise InputError(f"c_lr_factor must be above 0, got {arm.c_lr_factor}")
    return arm


def _check_once(arms: tuple[Arm, ...], pieces: list[Marked]) -> None:
    first: dict[str, Marked] = {}
    for arm, piece in zip(arms, pieces, strict=True):
        if arm.name in first:
            raise InputError(f"{piece.where}: arms holds {arm.name!r} twice, first at {first[arm.name].where}")
        first[arm.name] = piece


def _listed(whole: Marked, key: str) -> list[Marked]:
    piece = whole.value.get(key)
    if piece is None:
        near = [name for name in whole.value if yaml_fields.did_you_mean(name, [key])]
        raise InputError(
            f"{whole.where}: the study needs {key!r}, a list"
            + (f"; it has {near[0]!r}: did you mean {key!r}?" if near else "")
        )
    if not isinstance(piece.value, list):
        raise InputError(f'{piece.where}: the study needs {key!r}, a list: a line "- {{name: ...}}" for each')
    return piece.value


def _name_in(piece: Marked) -> str:
    named = piece.value.get("name") if isinstance(piece.value, dict) else None
    return repr(named.plain()) if named is not None else "without a name"
