"""The metrics of a task for any model, measured as the training run measures them."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from lrlora.data import TaskData
from lrlora.data.encode import Say, encode_rows
from lrlora.data.length import length_of_rows
from lrlora.training.config import TrainConfig
from lrlora.training.model import precision_of
from lrlora.training.scoring import results_of, scoring_parts
from lrlora.training.tokens import settle_padding


def evaluate_model(
    model: Any, tokenizer: Any, task: TaskData, config: TrainConfig, say: Say = lambda line: None
) -> dict[str, float]:
    """The task's metrics and loss on its held-out rows.

    Args:
        model: a model of transformers or PEFT; gets the padding of the tokenizer where it has none.
        tokenizer: its tokenizer; gets that of the model where it has none.
        task: as `load_task` returns it.
        config: max_length, template, batch_size and precision are read.
        say: gets a line about rows that were cut.

    Example:
        evaluate_model(model, tokenizer, load_task(config.data_source()), config)["accuracy"]
    """
    settle_padding(model, tokenizer)
    length = length_of_rows(config.max_length, tokenizer, model, say)
    rows = encode_rows(task, tokenizer, length, config.template, "evaluation", say)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_eval_batch_size=2 * config.batch_size,
            bf16=precision_of(config.precision) == "bf16",
            report_to="none",
            label_names=["labels"],
            prediction_loss_only=task.kind == "causal",
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=config.seed,
        )
        trainer = Trainer(model=model, args=arguments, eval_dataset=rows, **scoring_parts(task, tokenizer))
        # the Trainer prints its log lines on stdout, which is for the result
        with contextlib.redirect_stdout(sys.stderr):
            return results_of(trainer.evaluate())
