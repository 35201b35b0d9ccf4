"""One cell of a study: a fresh model under an arm, trained, measured, and forgotten."""

from __future__ import annotations

import dataclasses
import gc
import math
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from lrlora.data import TaskData
from lrlora.errors import InputError
from lrlora.ranks.measure import layer_ranks
from lrlora.saved.identity import digest_of_model, stamp_of_model
from lrlora.training.config import TrainConfig
from lrlora.training.fit import train_in_memory
from lrlora.training.model import base_of, is_bf16
from lrlora.training.run import versions
from lrlora.tuner import deltas
from peft_study import memory
from peft_study.arms import AllocateRanks, steps_of
from peft_study.base import keep_blocks
from peft_study.kinds import kind_of, load_parts
from peft_study.plan import Cell, arm_named, task_named
from peft_study.result import CellResult
from peft_study.rows import Parts
from peft_study.spec import Arm, Study, Task
from peft_study.task_kind import Trained

AGAIN = "the same command runs the study on them as they are, and --retry_failed this cell if they were put back"
RANK_FIELDS = (
    "layer", "block", "kind", "module", "stable_rank", "stable_rank_ba", "rms_over_tau", "outside_grid", "gate",
)  # fmt: skip


class Bench:
    """Runs cells of one study, one after the other, in one process; it reads and encodes the rows of a task once.

    A cell fails where its rows or its base model are not those that its fingerprint names: a result must not be
    attributed to data that it was not made from. The base is hashed once, and again where its files have changed.

    Example:
        Bench(study).run(cell).value
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._parts: dict[str, Parts] = {}
        self._digests: dict[tuple[str, str], str] = {}
        self._base: tuple[object, str] | None = None
        self._encoded: dict[tuple[str, str, int | None], tuple[Any, Any]] = {}
        self._notes: dict[tuple[str, str], list[str]] = {}
        self._of_base: dict[str, dict[str, float]] = {}

    def run(self, cell: Cell) -> CellResult:
        """The row of a cell in results.jsonl. An error inside the cell gives a row too, with its reason."""
        blank = blank_row(self._study, cell)
        try:
            return self._measured(cell, blank)
        except Exception as error:  # one bad cell must not stop the others; nothing is hidden: the row says it
            reason = reason_of(error)
            is_lost = kind_of(task_named(self._study, cell.task)).diverging_loses and cell.phase == "search"
            status = "diverged" if is_lost and reason.startswith("diverged") else "failed"
            return dataclasses.replace(blank, status=status, reason=reason, traceback=traceback.format_exc(limit=-3))
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _measured(self, cell: Cell, blank: CellResult) -> CellResult:
        arm, task = arm_named(self._study, cell.arm), task_named(self._study, cell.task)
        kind = kind_of(task)
        data = self._parts_of(task, cell).of(cell.phase)
        config = _train_config(self._study, arm, task, cell)
        # before the base is loaded: its new head is drawn from this seed as well
        set_seed(cell.seed)
        watch = memory.Watch()
        self._check_base(cell)
        base, tokenizer, task_type = base_of(config, data)
        self._check_base(cell)  # as it was while it was loaded
        if self._study.blocks is not None:
            keep_blocks(base, self._study.blocks)
        train_rows, evaluation_rows = self._encoded_of(task, cell, data, tokenizer)
        in_bf16 = is_bf16(config.precision)
        before = self._before(task, base, tokenizer, in_bf16)
        steps = steps_of(task, len(train_rows))
        model, peft_config = kind.under_arm(self._study, arm, base, task_type, steps)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in model.parameters())
        fitted = train_in_memory(config, data, model, tokenizer, train_rows, [AllocateRanks()])
        peak = watch.peak()
        parts = self._parts[task.name]
        trained = Trained(task, cell.phase, parts, model, tokenizer, evaluation_rows, before, in_bf16)
        metric, metrics = kind.score(trained)
        if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
            raise InputError(f"diverged: {bad[0]} is not finite after training")
        return dataclasses.replace(
            blank,
            metric=metric,
            value=metrics[metric],
            metrics=metrics,
            loss=metrics["loss"],
            train_loss=fitted.train_loss,
            trainable_parameters=trainable,
            total_parameters=total,
            wall_s=fitted.wall_s,
            **peak,
            file_bytes=_file_bytes(model, peft_config is not None),
            steps=fitted.steps,
            train_rows=len(data.train),
            eval_rows=len(data.evaluation),
            ranks=_ranks(model) if cell.phase == "final" else None,
            adapter=None if peft_config is None else settings_of(peft_config),
            notes=self._notes[task.name, cell.phase],
            status="done",
        )

    def _parts_of(self, task: Task, cell: Cell) -> Parts:
        if task.name not in self._parts:
            self._parts[task.name] = load_parts(self._study, task)
        parts, key = self._parts[task.name], (task.name, cell.phase)
        if key not in self._digests:
            self._digests[key] = parts.digest(cell.phase)
        if self._digests[key] != cell.rows:
            raise InputError(f"the rows of task {task.name!r} changed after the study had begun; {AGAIN}")
        return parts

    def _check_base(self, cell: Cell) -> None:
        stamp = stamp_of_model(self._study.model)
        if self._base is None or self._base[0] != stamp:
            self._base = (stamp, digest_of_model(self._study.model))
        if self._base[1] != cell.model:
            raise InputError(f"the base model's files changed after the study had begun; {AGAIN}")

    def _encoded_of(self, task: Task, cell: Cell, data: TaskData, tokenizer: Any) -> tuple[Any, Any]:
        kind = kind_of(task)
        key = (task.name, cell.phase, cell.seed if kind.is_encoded_by_seed else None)
        if key not in self._encoded:
            notes = self._notes[key[:2]] = [*data.notes]
            self._encoded[key] = kind.encode(task, data, tokenizer, cell.seed, notes.append)
        return self._encoded[key]

    def _before(self, task: Task, base: Any, tokenizer: Any, in_bf16: bool) -> dict[str, float]:
        if task.name not in self._of_base:
            self._of_base[task.name] = kind_of(task).before(task, self._parts[task.name], base, tokenizer, in_bf16)
        return self._of_base[task.name]


def blank_row(study: Study, cell: Cell) -> CellResult:
    """The row of a cell that has not come through."""
    return CellResult(
        study=study.study,
        arm=cell.arm,
        method=arm_named(study, cell.arm).method,
        task=cell.task,
        phase=cell.phase,
        learning_rate=cell.learning_rate,
        seed=cell.seed,
        versions=versions(),
        fingerprint=cell.fingerprint,
    )


def reason_of(error: BaseException) -> str:
    """Why a cell failed, in one line."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"out of memory: {text}"
    if "became NaN or inf" in text:
        return f"diverged: {text.split(';')[0]}"
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def _train_config(study: Study, arm: Arm, task: Task, cell: Cell) -> TrainConfig:
    training = study.training
    return TrainConfig(
        model=study.model,
        learning_rate=cell.learning_rate,
        c_learning_rate=cell.learning_rate * (10.0 if arm.c_lr_factor is None else arm.c_lr_factor),
        weight_decay=training.weight_decay,
        lr_scheduler=training.lr_scheduler,
        warmup_steps=training.warmup_steps,
        max_grad_norm=training.max_grad_norm,
        precision=training.precision,
        gradient_checkpointing=training.gradient_checkpointing,
        max_length=task.max_length,
        image_size=task.image_size,
        template=task.template,
        pooling=task.pooling,
        epochs=task.epochs,
        max_steps=task.max_steps,
        batch_size=task.batch_size,
        gradient_accumulation=task.gradient_accumulation,
        seed=cell.seed,
    )


def _file_bytes(model: Any, is_adapter: bool) -> int:
    """Size of the adapter as PEFT saves it; of a whole model the bytes of its weights, which are not written."""
    if not is_adapter:
        return sum(p.numel() * p.element_size() for p in model.parameters())
    with tempfile.TemporaryDirectory(prefix="lrlora-") as folder:
        model.save_pretrained(folder)
        return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def _ranks(model: Any) -> list[dict[str, Any]] | None:
    if not deltas(model):
        return None
    return [{name: row.as_dict()[name] for name in RANK_FIELDS} for row in layer_ranks(model)]


def settings_of(config: Any) -> dict[str, Any]:
    """A method's config as PEFT saves it, without where this machine keeps the base model."""
    return {key: value for key, value in _plain(config.to_dict()).items() if key != "base_model_name_or_path"}


def _plain(value: Any) -> Any:
    """A config as JSON holds it: sets sorted, enums by value."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, set | list | tuple):
        return [_plain(each) for each in (sorted(value, key=str) if isinstance(value, set) else value)]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
