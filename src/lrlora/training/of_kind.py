"""Settings that only some kinds of task have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lrlora.data import TaskData
from lrlora.data.tasks import IMAGES
from lrlora.errors import InputError

if TYPE_CHECKING:
    from lrlora.training.config import TrainConfig

_OF_TEXT = {"text_columns": None, "max_length": None, "template": "auto", "pooling": "auto"}
_OF_IMAGES = {"image_column": None, "image_size": None, "augment": "auto", "bad_images": "refuse"}
"""Their defaults, which mean that nobody asked."""


def check_kind(config: TrainConfig, task: TaskData) -> None:
    """Refuse settings of text for images, and of images for text.

    Raises:
        InputError: naming the first of them.
    """
    others, of = (_OF_TEXT, "text") if task.kind == IMAGES else (_OF_IMAGES, "images")
    for name, default in others.items():
        if getattr(config, name) != default:
            raise InputError(f"--{name} is of {of}, and {task.name} is a task of {task.kind}; leave --{name} out")
