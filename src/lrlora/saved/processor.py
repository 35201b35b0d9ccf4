"""The image processor of a model, and what its forward has to be told of images of another size."""

from __future__ import annotations

import inspect
from typing import Any

from lrlora.data.embedded import model_folder
from lrlora.errors import InputError, first_lines
from lrlora.saved.base import AS_IT_IS, BaseOptions
from lrlora.saved.local import absolute

INTERPOLATE = "interpolate_pos_encoding"
"""Argument of vision transformers: fit the table of positions to images of another size."""


def load_processor(name: str, options: BaseOptions = AS_IT_IS, size: int | None = None) -> Any:
    """The image processor of a model or an adapter, on Pillow: the same pixels with torchvision installed and without.

    Args:
        name: a folder, a name on the hub, or embedded-vision.
        options: of the base model: its revision, and whether its code may run.
        size: pixels a side that it shall make; where it resizes first and crops then, both change in proportion.
            None: its own.

    Raises:
        InputError: it is not there, or cannot make images of that size.
    """
    # imported here: all else works without Pillow
    from transformers import AutoImageProcessor

    from lrlora.data.pixels import size_of

    try:
        where, how = absolute(model_folder(name)), {**options.which, "backend": "pil"}
        found = AutoImageProcessor.from_pretrained(where, **how)
        if size is not None:
            found = AutoImageProcessor.from_pretrained(where, **how, **_resized(found, size))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"cannot load the image processor of {name!r}: {first_lines(error)}") from error
    if size is not None and size_of(found) != (size, size):
        raise InputError(
            f"{type(found).__name__} of {name!r} makes no images of {size} pixels a side; leave --image_size out"
        )
    return found


def _resized(processor: Any, size: int) -> dict[str, Any]:
    """The sizes in a processor's config for images of `size` pixels a side."""
    had, crop = dict(processor.size), getattr(processor, "crop_size", None)
    square = {"height": size, "width": size}
    if not had.get("shortest_edge"):
        return {"size": square}
    if not getattr(processor, "do_center_crop", False) or not crop:
        return {"size": {"shortest_edge": size}}
    return {"size": {"shortest_edge": round(had["shortest_edge"] * size / crop["height"])}, "crop_size": square}


def forward_arguments(model: Any, processor: Any) -> dict[str, Any]:
    """What the forward of an image classifier needs besides pixels: whether to interpolate its positions.

    Args:
        model: the classifier, with or without an adapter.
        processor: of the images.

    Raises:
        InputError: images of a size that the model cannot take, or that is no multiple of its patches.
    """
    from lrlora.data.pixels import size_of

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = getattr(base.config, "vision_config", base.config)
    sides = size_of(processor)
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, int) and any(side % patch for side in sides):
        near = max(1, round(sides[0] / patch)) * patch
        raise InputError(
            f"images of {sides[0]} x {sides[1]} pixels are no multiple of the patches of {patch} of "
            f"{type(base).__name__}: their border would be cut off; pass --image_size {near}"
        )
    made_for = getattr(config, "image_size", None)
    if made_for is None or sides == (tuple(made_for) if isinstance(made_for, list | tuple) else (made_for, made_for)):
        return {}
    inner = getattr(base, "vision_model", base)
    return {INTERPOLATE: True} if INTERPOLATE in inspect.signature(inner.forward).parameters else {}
