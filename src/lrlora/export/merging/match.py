"""Which tensor of a base's files belongs to which weight of the model.

Files may carry or lack the prefix of the base model (`bert.`), and transformers 5 fuses or renames some weights while
it loads (the experts of Mixtral). The second is undone with transformers' own way back, `revert_weight_conversion`,
applied to the update instead of the weight: those conversions only split, join and transpose. The parts of W0 + dW are
then the parts of W0 plus those of dW.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrlora.export.skeleton import AdaptedLayer, Skeleton
from lrlora.internals import saved_parts


@dataclass(frozen=True)
class Matched:
    """How a base's tensors become those of the merged checkpoint.

    Args:
        name_of: name in the merged checkpoint, for every tensor of the base that goes along.
        dropped: tensors that the model has no place for, such as another task's head.
        piece_of: for a name in the merged checkpoint, the layer whose update is added, and the name of its part.
    """

    name_of: dict[str, str]
    dropped: list[str]
    piece_of: dict[str, tuple[AdaptedLayer, str]]


def match(built: Skeleton, keys: Iterable[str], is_same_architecture: bool) -> Matched | str:
    """Match the names of a base's tensors with a model; where that fails, the reason in words."""
    name_of, dropped = {}, []
    for key in keys:
        name = model_name(built, key)
        if name is None and not is_same_architecture and not _has_a_place(built, key):
            dropped.append(key)
        else:
            name_of[key] = name or key
    if len(set(name_of.values())) != len(name_of):
        return "two tensors of its files have one place in the model"
    # what the adapter brings is in the merged checkpoint too
    names = {*name_of.values(), *built.replaced()}
    piece_of = {}
    for layer in built.layers():
        pieces = _pieces(built, layer, names)
        if pieces is None:
            return f"no tensor of its files is {layer.weight_name}"
        for name, part in pieces.items():
            piece_of[name] = (layer, part)
    return Matched(name_of, dropped, piece_of)


def model_name(built: Skeleton, key: str) -> str | None:
    """The model's name for a tensor of a file: with, without, or as it is the base model's prefix; None without any."""
    prefix = f"{built.base.base_model_prefix}."
    for name in (key, prefix + key, key.removeprefix(prefix)):
        if name in built.shapes:
            return name
    return None


def parts(built: Skeleton, layer: AdaptedLayer, update: Tensor) -> dict[str, Tensor]:
    """An update in the parts, and under the names, that transformers saves its weight in."""
    return saved_parts(built.base, {layer.weight_name: update})


def _pieces(built: Skeleton, layer: AdaptedLayer, names: set[str]) -> dict[str, str] | None:
    """Names in the merged checkpoint and the parts of the update that belong there; part "" is the whole update."""
    whole = layer.weight_name
    try:
        made = parts(built, layer, torch.empty(built.shapes[whole], device="meta"))
    except Exception:  # a conversion that knows only the way forward; the caller then merges in memory, and says so
        made = {}
    found = {_within(built, name, names): name for name in made}
    if found and None not in found:
        return {name: "" if part == whole else part for name, part in found.items() if name is not None}
    return {whole: ""} if whole in names else None


def _within(built: Skeleton, name: str, names: set[str]) -> str | None:
    prefix = f"{built.base.base_model_prefix}."
    return next((n for n in (name, prefix + name, name.removeprefix(prefix)) if n in names), None)


def _has_a_place(built: Skeleton, key: str) -> bool:
    base: Any = built.base
    first = key.removeprefix(f"{base.base_model_prefix}.").split(".")[0]
    return any(hasattr(module, first) for module in (base, getattr(base, base.base_model_prefix, base)))
