"""Tasks of kind "image-classification": scored on held-out rows, but for how these are read, split and encoded."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from lrlora.data import DataSource, TaskData
from lrlora.data.embedded import DIGITS, DIGITS_SIZE
from lrlora.data.encode import Say
from lrlora.data.tasks import IMAGES
from lrlora.errors import InputError
from lrlora.saved.base import IMAGE_CLS
from lrlora.saved.processor import load_processor
from lrlora.training.heads import load_task_for
from peft_study.arms import adapted, adapter_config
from peft_study.held_out import HELD_OUT, in_parts
from peft_study.result import Phase
from peft_study.rows import SPLIT_SEED, Parts
from peft_study.spec import Arm, Study, Task
from peft_study.task import OF_TEXT, settings_of

if TYPE_CHECKING:
    from datasets import Dataset


def _splits(study: Study, task: Task) -> Parts:
    """As `peft_study.held_out.splits`, with every class in its share of every part.

    Raises:
        InputError: images that are not there or not readable, or too few of them.
    """
    source = DataSource(
        data=study.data_of(task),
        task=task.task,
        subset=task.subset,
        kind=IMAGES,
        label_column=task.label_column,
        # all rows, of which the parts are taken
        eval_rows=None if task.test_from == "training" else task.test_rows,
        seed=SPLIT_SEED,
        image_column=task.image_column,
        bad_images=task.bad_images,
    )
    whole = load_task_for(study.model, source)
    return in_parts(task, whole, stratified(whole.train))


def stratified(rows: Dataset) -> Dataset:
    """Rows in a random order in which any first n hold every class in its share: of 10 equal classes n / 10 each.

    The i-th row of a class of m comes at (i + 1/2) / m, as in drawing without replacement from strata; ours.

    Args:
        rows: with a column label.
    """
    drawn = rows.shuffle(seed=SPLIT_SEED)
    labels: list[int] = drawn["label"][:]
    many, seen, places = dict.fromkeys(labels, 0), dict.fromkeys(labels, 0), []
    for label in labels:
        many[label] += 1
    for label in labels:
        places.append(((seen[label] + 0.5) / many[label], label))
        seen[label] += 1
    return drawn.select(sorted(range(len(labels)), key=places.__getitem__))


def _assumed(study: Study, task: Task) -> tuple[int | None, int | None]:
    if task.train_rows is None and task.max_steps < 1:
        return len(_splits(study, task).search.train), 2
    return task.train_rows, 2


def _settings(task: Task, phase: Phase) -> dict[str, Any]:
    of_text = settings_of(task)
    own = {name: value for name, value in of_text.items() if name not in OF_TEXT}
    # column and bad_images decide which rows there are, which their digest says
    return {**own, "image_size": task.image_size, "augment": task.augment}


def _tokens(study: Study, task: Task, config: Any) -> int:
    """Patches of an image and the class token.

    Raises:
        InputError: a model whose blocks do not all read the same patches.
    """
    patch = getattr(config, "patch_size", None)
    if not isinstance(patch, int) or hasattr(config, "depths"):
        raise InputError(
            f"a {config.model_type} does not read the same number of patches in every block, so that nothing can be "
            "estimated; run the study without --dry_run"
        )
    side = task.image_size or (DIGITS_SIZE if task.data == DIGITS else None)
    if side is None and study.model_config is None and study.model is not None:
        from lrlora.data.pixels import size_of

        side = size_of(load_processor(study.model))[0]
    return ((side or config.image_size) // patch) ** 2 + 1


def _encode(task: Task, data: TaskData, processor: Any, seed: int, say: Say) -> tuple[Any, Any]:
    # imported here: all else works without Pillow
    from lrlora.data.pixels import pixels_of

    return pixels_of(data, processor, task.augment, seed)


def _under_arm(study: Study, arm: Arm, base: Any, task_type: str, steps: int) -> tuple[Any, Any]:
    # PEFT has no word for image classification; `put_on` has the head trained and saved whole
    config = adapter_config(study, arm, None, steps)
    return adapted(base, config), config


CLASSIFIED_IMAGES = dataclasses.replace(
    HELD_OUT,
    splits=_splits,
    assumed=_assumed,
    settings=_settings,
    task_type=lambda classes: IMAGE_CLS,
    tokens=_tokens,
    encode=_encode,
    is_encoded_by_seed=True,
    under_arm=_under_arm,
)
"""As held-out rows, but for these."""
