"""--dry_run: cells and parameters of a study from shapes only, estimates of memory and hours. Nothing is loaded."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from lrlora.data.embedded import DIGITS, encoder_folder, model_folder
from lrlora.data.tasks import WITH_CLASSES
from lrlora.errors import InputError
from lrlora.files import read_json
from lrlora.saved.adapter import AUTO_CLASSES
from lrlora.saved.pooling import set_pooling
from peft_study.arms import steps_of
from peft_study.base import config_of_blocks, keep_blocks
from peft_study.kinds import kind_of
from peft_study.plan import cells_of_arm
from peft_study.scales import Scale, scale_lines, scale_of
from peft_study.spec import Arm, Study, Task
from peft_study.task import EMBEDDED

COSTS = Path(__file__).with_name("step_costs.json")
"""Time and peak memory of a training step over plain LoRA's, by tokens of a step: `python -m benchmarks.step_costs`."""


@dataclass(frozen=True)
class Sizes:
    """What of a task's rows an estimate needs.

    Args:
        train_rows: rows to train on; None: `max_steps` says how long to train, and the rows are not here.
        classes: width of the head; None for language models, 1 for regression.
        is_assumed: the rows are not here: what the study file, GLUE's own numbers and two classes say.
    """

    train_rows: int | None
    classes: int | None
    is_assumed: bool

    def told(self) -> str:
        """In words, for a title."""
        many = [] if self.train_rows is None else [f"{self.train_rows:,} rows to train on"]
        many += [] if self.classes is None else ["1 output" if self.classes == 1 else f"{self.classes} classes"]
        return ", ".join(many) + (" (assumed: the data are not here)" if self.is_assumed and many else "")


@dataclass(frozen=True)
class Estimate:
    """What one arm on one task will take; memory and hours are estimates from shapes, not measurements.

    Args:
        task, arm, method: which.
        scale: s of the update with its rank; None for methods that have none.
        sizes: of the task's rows.
        cells: runs of the search and final ones together.
        trainable_parameters, total_parameters: counted on the model, built without memory.
        steps: optimizer steps of a cell.
        memory_bytes: weights in float32, gradients and AdamW of what is trained, activations.
        hours_of_a_cell: of the training only, at the study's device_tflops; None where it names none.
        time_ratio: of a step over plain LoRA's, from docs/performance.md; None where the method was not measured: then
            LoRA's is taken, as a lower bound.
    """

    task: str
    arm: str
    method: str
    scale: Scale | None
    sizes: Sizes
    cells: int
    trainable_parameters: int
    total_parameters: int
    steps: int
    memory_bytes: float
    hours_of_a_cell: float | None
    time_ratio: float | None

    def shown(self) -> tuple[str, ...]:
        """The cells of a table; ">" marks a lower bound."""
        bound = "> " if self.time_ratio is None else ""
        hours = self.hours_of_a_cell
        return (
            self.arm,
            "-" if self.scale is None else f"{self.scale.s:.4g}",
            str(self.cells),
            f"{self.trainable_parameters:,}",
            f"{self.trainable_parameters / self.total_parameters:.2%}",
            f"{self.steps:,}",
            f"{bound}{self.memory_bytes / 2**30:.1f}",
            "-" if hours is None else f"{bound}{hours:.2f}",
            "-" if hours is None else f"{bound}{hours * self.cells:.1f}",
            "not measured" if self.time_ratio is None else f"{self.time_ratio:.2f}",
        )


def estimates(study: Study) -> list[Estimate]:
    """Every arm on every task.

    Raises:
        InputError: a model or rows whose sizes cannot be known here, with what to give instead; a method that reads
            the weights while it is built.

    Example:
        for each in estimates(read_study("studies/full-roberta-base.yaml")):
            print(each.shown())
    """
    found = []
    for task in study.tasks:
        sizes = _sizes_of(study, task)
        found += [_estimate(study, task, arm, sizes) for arm in study.arms]
    return found


def estimate_lines(study: Study, found: list[Estimate]) -> list[str]:
    """What to say next to the tables: other scales at one rank, and tasks that have fewer rows than they ask for."""
    lines = scale_lines((each.arm, each.scale) for each in found)
    for task in study.tasks:
        sizes = next(each.sizes for each in found if each.task == task.name)
        if task.train_rows is not None and sizes.train_rows is not None and sizes.train_rows < task.train_rows:
            lines.append(f"{task.name}: train_rows asks for {task.train_rows:,}, and there are {sizes.train_rows:,}")
    return lines


def _estimate(study: Study, task: Task, arm: Arm, sizes: Sizes) -> Estimate:
    steps = steps_of(task, sizes.train_rows or 1)
    kind = kind_of(task)
    task_type = kind.task_type(sizes.classes)
    base = _on_meta(study, task_type, sizes.classes)
    set_pooling(base, task.pooling)
    if study.blocks is not None:
        keep_blocks(base, study.blocks)
    shape = config_of_blocks(base)
    matmul = sum(m.weight.numel() for m in base.modules() if isinstance(m, torch.nn.Linear))
    tokens = task.batch_size * kind.tokens(study, task, shape)
    try:
        with torch.device("meta"):
            model, peft_config = kind.under_arm(study, arm, base, task_type, steps)
    except (RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"arm {arm.name!r}: method {arm.method} cannot be built from shapes only ({str(error).splitlines()[0]}), "
            "so nothing can be estimated; leave the arm out of a --dry_run"
        ) from error
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    width = 2 if study.training.precision == "bf16" else 4
    # per token and layer: about 17 vectors of the model's width, or one where activations are computed again
    activations = tokens * shape.num_hidden_layers * shape.hidden_size * width
    activations *= 1 if study.training.gradient_checkpointing else 17
    ratio, memory_ratio = (_nearest(what, arm.method, tokens) for what in ("time", "memory"))
    hours = None
    if study.device_tflops is not None:
        # forward and gradient of the input, two operations each: what LoRA cannot do without; the forward pass twice
        # where activations are computed again
        flops = (
            (6.0 if study.training.gradient_checkpointing else 4.0)
            * matmul
            * tokens
            * task.gradient_accumulation
            * steps
        )
        hours = flops * (ratio or 1.0) / (study.device_tflops * 1e12) / 3600
    return Estimate(
        task.name, arm.name, arm.method, scale_of(peft_config and peft_config.to_dict()), sizes,
        cells_of_arm(study, arm),
        trainable, total, steps, 4.0 * total + 12.0 * trainable + (memory_ratio or 1.0) * activations, hours, ratio,
    )  # fmt: skip


def _on_meta(study: Study, task_type: str, labels: int | None) -> Any:
    config = _config_of(study)
    if labels is not None:
        config.num_labels = labels
    with torch.device("meta"):
        return AUTO_CLASSES[task_type].from_config(config)


def _config_of(study: Study) -> Any:
    if study.model_config is not None:
        fields = dict(study.model_config)
        try:
            return AutoConfig.for_model(fields.pop("model_type"), **fields)
        except (KeyError, ValueError) as error:
            raise InputError(f"model_config needs a model_type that transformers knows: {error}") from error
    try:
        return AutoConfig.from_pretrained(model_folder(study.model) if study.model else str(encoder_folder()))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read the config of {study.model!r}; give the study a model_config: model_type, hidden_size, ..."
        ) from error


def _sizes_of(study: Study, task: Task) -> Sizes:
    """From the rows, where they are on this machine; else what is known without them."""
    if _is_here(study, task):
        data = kind_of(task).splits(study, task).search
        classes = 1 if data.kind == "regression" else len(data.labels) if data.kind in WITH_CLASSES else None
        return Sizes(len(data.train), classes, is_assumed=False)
    return Sizes(*kind_of(task).assumed(study, task), is_assumed=True)


def _is_here(study: Study, task: Task) -> bool:
    """Whether the rows of a task can be read without the hub; a data_root that is named must hold them."""
    if not kind_of(task).reads(task) or task.data in (EMBEDDED, DIGITS) or study.data_root is not None:
        return True
    return task.data is not None and Path(task.data).expanduser().exists()


@functools.cache
def _costs() -> dict[str, Any]:
    return read_json(COSTS)


def _nearest(what: str, method: str, tokens: int) -> float | None:
    """The measured ratio at the number of tokens that is nearest; None where the method was not measured."""
    measured, ratios = _costs()["tokens"], _costs()[what].get(method)
    if ratios is None:
        return None
    return float(ratios[min(range(len(measured)), key=lambda number: abs(measured[number] - tokens))])
