"""What a study is: arms x tasks x learning rates x seeds, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lrlora.data.embedded import DIGITS, VISION
from lrlora.errors import InputError
from lrlora.statistics import SMALLEST_EFFECT
from peft_study.task import EMBEDDED, Task, check_name


@dataclass(frozen=True)
class Training:
    """What is the same for every cell of a study; the fields mean what they mean in `lrlora train`."""

    weight_decay: float = 0.0
    lr_scheduler: str = "linear"
    warmup_steps: float = 0.06
    max_grad_norm: float = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class Arm:
    """One method with its settings.

    Args:
        name: of the arm in this study.
        method: a preset, a method of PEFT, or package.module:ConfigClass; see `peft_study.methods.method_named`.
        fields: fields of the method's config in PEFT that differ from its defaults here.
        learning_rates: rates of its own, as many as every other arm has; empty: the study's.
        c_lr_factor: learning rate of c over that of A and B, for LR-LoRA; None: 10.
    """

    name: str
    method: str
    fields: dict[str, Any] = field(default_factory=dict)
    learning_rates: tuple[float, ...] = ()
    c_lr_factor: float | None = None


@dataclass(frozen=True)
class Study:
    """A comparison: every arm on every task, tuned by the same budget.

    Args:
        study: its name.
        arms, tasks: what is compared, on what.
        learning_rates: the rates of every arm that has none of its own. A single one is used without a search.
        seeds: of the runs that give the result, at the chosen rate.
        search_seeds: of the runs that choose the rate.
        choose_by: what chooses the rate: "metric", the task's first one, or "loss", which is less noisy on few rows.
        smallest_effect: a difference of the metric, or of the loss, that is smaller than this is not called shown,
            even where it is significant.
        note: a sentence about the study, shown with its results.
        reference: the arm that others are compared with; None: the first arm of method "lora".
        model: folder, hub name, "embedded-decoder" or "embedded-vision"; None: the embedded encoder.
        model_config: config of the model, {"model_type": ...}: with it --dry_run needs neither weights nor hub.
        data_root: folder that the tasks' `data` is relative to.
        target_modules, exclude_modules, modules_to_save: the placement, the same for every arm.
        training: what is the same for every cell.
        device_tflops: assumed speed of the device in TFLOP/s, for the estimates of --dry_run.
        blocks: use only the first so many blocks of the base model; None: all.
        widen: at most so many more rates are tried for an arm on a task, one factor of its grid beyond the edge, while
            the best rate is at the edge of those tried.
    """

    study: str
    arms: tuple[Arm, ...]
    tasks: tuple[Task, ...]
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    search_seeds: tuple[int, ...] = (0,)
    choose_by: Literal["metric", "loss"] = "metric"
    smallest_effect: float = SMALLEST_EFFECT
    note: str = ""
    reference: str | None = None
    model: str | None = None
    model_config: dict[str, Any] | None = None
    data_root: str | None = None
    target_modules: str | tuple[str, ...] = "all-linear"
    exclude_modules: tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] | None = None
    training: Training = Training()
    device_tflops: float | None = None
    blocks: int | None = None
    widen: int = 0

    def __post_init__(self) -> None:
        check_name(self.study, "name of a study")
        for name in ("arms", "tasks", "learning_rates", "seeds", "search_seeds"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty; at least one is needed")
        for name in ("arms", "tasks"):
            _check_once([each.name for each in getattr(self, name)], name)
        for name in ("seeds", "search_seeds"):
            _check_once(getattr(self, name), name)
            wrong = [seed for seed in getattr(self, name) if not 0 <= seed < 2**32]
            if wrong:
                raise InputError(f"{name} must be in [0, 2^32), got {wrong[0]}")
        self._check_budget()
        if not (self.smallest_effect >= 0 and math.isfinite(self.smallest_effect)):
            raise InputError(f"smallest_effect must be at least 0, got {self.smallest_effect}")
        for name, least in (("blocks", 1), ("widen", 0)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        facts = [task.name for task in self.tasks if task.is_facts]
        if facts and self.modules_to_save:
            raise InputError(
                f"modules_to_save ({', '.join(self.modules_to_save)}) would hold facts as well, and task "
                f"{facts[0]!r} of kind facts counts only what the adapter holds; leave modules_to_save out"
            )
        self._check_images()
        names = [arm.name for arm in self.arms]
        if self.reference is not None and self.reference not in names:
            raise InputError(f"reference {self.reference!r} is none of the arms: {', '.join(names)}")

    def _check_budget(self) -> None:
        for owner, rates in (("the study", self.learning_rates), *((a.name, self.rates_of(a)) for a in self.arms)):
            _check_once(rates, f"learning_rates of {owner}")
            if not all(math.isfinite(rate) and rate > 0 for rate in rates):
                raise InputError(f"learning_rates of {owner} must be above 0, got {list(rates)}")
        for arm in self.arms:
            if len(self.rates_of(arm)) != len(self.learning_rates):
                raise InputError(
                    f"arm {arm.name!r} has {len(self.rates_of(arm))} learning rates and the study "
                    f"{len(self.learning_rates)}: every arm gets the same budget; give it as many"
                )

    def _check_images(self) -> None:
        images = [task.name for task in self.tasks if task.is_images]
        others = [task.name for task in self.tasks if not task.is_images]
        if images and others:
            raise InputError(
                f"task {images[0]!r} is of images and task {others[0]!r} is not, and a study has one base model; write "
                "a study for each"
            )
        if images and self.model is None:
            raise InputError(
                f"task {images[0]!r} is of images, which the embedded encoder does not read; give the study a model: "
                f"{VISION}, a folder, or a name on the hub"
            )

    def rates_of(self, arm: Arm) -> tuple[float, ...]:
        """The learning rates that an arm is tuned over."""
        return arm.learning_rates or self.learning_rates

    def reference_arm(self) -> str | None:
        """Name of the arm that others are compared with."""
        return self.reference or next((arm.name for arm in self.arms if arm.method == "lora"), None)

    def data_of(self, task: Task) -> str | None:
        """What `lrlora.data` is asked for; None: the embedded text.

        Raises:
            InputError: a task that says nowhere where its rows are.
        """
        if task.data in (EMBEDDED, DIGITS):
            return None if task.data == EMBEDDED else DIGITS
        if self.data_root is not None:
            return str(Path(self.data_root).expanduser() / (task.data or ""))
        if task.data is None:
            raise InputError(
                f"task {task.name!r} names no data and the study no data_root; pass --data_root FOLDER, or give the "
                'task data: a path, a dataset of the hub such as "glue", or "embedded"'
            )
        return task.data


def _check_once(values: Sequence[Any], what: str) -> None:
    twice = [value for number, value in enumerate(values) if value in values[:number]]
    if twice:
        raise InputError(f"{what} holds {twice[0]!r} twice")
