"""Settings that only some kinds of task have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lrlora.data import TaskData
from lrlora.data.tasks import IMAGES
from lrlora.errors import InputError
from lrlora.training.epochs import is_by_length

if TYPE_CHECKING:
    from lrlora.training.config import TrainConfig

_OF_TEXT = {"text_columns": None, "max_length": None, "template": "auto", "pooling": "auto"}
_OF_IMAGES = {"image_column": None, "image_size": None, "augment": "auto", "bad_images": "refuse"}
"""Their defaults, which mean that nobody asked."""

_NO_LENGTH = "images have no length"
_CANNOT_ORDER = {
    (IMAGES, "group_by_length"): _NO_LENGTH,
    (IMAGES, "batch_rebalance"): _NO_LENGTH,
    ("preference", "batch_rebalance"): "transformers finds no length of a pair; group_by_length finds it",
}
"""Kinds of tasks, and the `train_sampling_strategy` that they do not have, with the reason."""


def check_kind(config: TrainConfig, task: TaskData) -> None:
    """Refuse settings of text for images, of images for text, and orders of rows by a length that rows do not have.

    Raises:
        InputError: naming the first of them.
    """
    others, of = (_OF_TEXT, "text") if task.kind == IMAGES else (_OF_IMAGES, "images")
    for name, default in others.items():
        if getattr(config, name) != default:
            raise InputError(f"--{name} is of {of}, and {task.name} is a task of {task.kind}; leave --{name} out")
    given = config.trainer
    strategy = "group_by_length" if is_by_length(given) else str(given.get("train_sampling_strategy"))
    if reason := _CANNOT_ORDER.get((task.kind, strategy)):
        raise InputError(f"train_sampling_strategy {strategy}: {reason}; leave it out")
