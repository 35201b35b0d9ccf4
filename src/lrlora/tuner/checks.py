"""The checks of one field of a configuration, and of a file's tensors: what must be, what was got, and what to do."""

from __future__ import annotations

import math
import warnings

from torch import Tensor

from lrlora.errors import InputError


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_whole(value: object, name: str, least: int, advice: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}; {advice}")


def check_positive(value: object, name: str) -> None:
    if not is_number(value) or value <= 0:  # pyright: ignore[reportOperatorIssue]
        raise InputError(f"{name} must be a finite number above 0, got {value!r}")


def check_choice(value: object, name: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_tensors(shapes: dict[str, tuple[int, ...]], state_dict: dict[str, Tensor], mark: str) -> None:
    """Refuse tensors of other shapes than the model's, and warn of updates of layers that it does not have."""
    wrong = [(k, tuple(v.shape)) for k, v in state_dict.items() if k in shapes and tuple(v.shape) != shapes[k]]
    if wrong:
        key, shape = wrong[0]
        raise InputError(
            f"the adapter does not fit this base model: {key} is {shape} in the file and {shapes[key]} in the model "
            f"({len(wrong)} such tensors); load it on the base that it was trained on"
        )
    if left := [key for key in state_dict if mark in key and key not in shapes]:
        # PEFT warns of layers without tensors itself, and loads the file without the others in silence
        warnings.warn(
            f"{len(left)} tensors of the adapter have no place in this model and are dropped, the first is {left[0]}; "
            "load it on the base that it was trained on, and with its own config",
            stacklevel=2,
        )
