"""transformers' Trainer as `lrlora train` sets it up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from lrlora.data import TaskData
from lrlora.errors import InputError
from lrlora.evaluation.score import collator_of
from lrlora.internals import trackers
from lrlora.training.config import TrainConfig
from lrlora.training.guard import NonFiniteGuard
from lrlora.training.labelled import LabelledTrainer
from lrlora.training.model import is_bf16
from lrlora.tuner.callback import TauCallback
from lrlora.tuner.optimize import param_groups


def make_trainer(
    config: TrainConfig,
    task: TaskData,
    model: Any,
    tokenizer: Any,
    train_rows: Any,
    out: Path,
    saves: bool = True,
) -> Trainer:
    """transformers' Trainer as `lrlora train` sets it up; also for models of other methods, and without an adapter.

    Args:
        config: the settings; those of the adapter are not read.
        task: what is trained.
        model: the model, adapted or not.
        tokenizer: of the model.
        train_rows: encoded rows.
        out: folder of the checkpoints.
        saves: write checkpoints.

    Raises:
        InputError: a setting that transformers refuses.
    """
    groups = param_groups(model, config.learning_rate, config.c_learning_rate, config.weight_decay)
    try:
        arguments = TrainingArguments(
            output_dir=str(out),
            num_train_epochs=config.epochs,
            max_steps=config.max_steps,
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation,
            gradient_checkpointing=config.gradient_checkpointing,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            lr_scheduler_type=config.lr_scheduler,
            warmup_steps=config.warmup_steps,
            max_grad_norm=config.max_grad_norm,
            bf16=is_bf16(config.precision),
            # else several processes on CPUs would each train a separate model
            use_cpu=not torch.accelerator.is_available(),
            seed=config.seed,
            save_strategy="steps" if saves else "no",
            save_steps=config.save_steps,
            save_total_limit=2,
            logging_steps=20,
            logging_nan_inf_filter=False,
            report_to=config.report_to,
            dataloader_pin_memory=torch.cuda.is_available(),
            remove_unused_columns=True,
            label_names=["labels"],
            disable_tqdm=not saves,
        )
    except ValueError as error:
        raise InputError(str(error).splitlines()[0]) from error
    trainer = (LabelledTrainer if task.kind == "causal" else Trainer)(
        model=model,
        args=arguments,
        train_dataset=train_rows,
        data_collator=collator_of(task, tokenizer),
        processing_class=tokenizer,
        # the groups travel in the optimizer's arguments: the way that the Trainer offers for its own methods
        optimizer_cls_and_kwargs=(torch.optim.AdamW, {"params": groups, "lr": config.learning_rate}),
        callbacks=[TauCallback(), NonFiniteGuard()],
    )
    if task.kind != "causal":
        # the Trainer takes every model whose forward has **kwargs for one that divides its loss by the rows of all
        # accumulated batches and processes. Classifiers take the mean of a batch: their loss would grow with both
        trainer.model_accepts_loss_kwargs = False
    return trainer


def check_trackers(names: list[str]) -> None:
    """Refuse a tracker that transformers does not know, or that is not installed.

    Raises:
        InputError: with what transformers says of it.
    """
    if names in ([], ["none"]):
        return
    try:
        for callback in trackers("all" if names == ["all"] else names):
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"report_to {' '.join(names)}: {' '.join(str(error).split())}") from error
