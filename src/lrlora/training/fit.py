"""Training without a run folder, for studies that train hundreds of adapters in one process."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from lrlora.data import TaskData
from lrlora.training.config import TrainConfig
from lrlora.training.trainer import make_trainer


@dataclass(frozen=True)
class Fitted:
    """How a training in memory went.

    Args:
        train_loss: mean over all steps.
        steps: optimizer steps.
        wall_s: seconds of training only.
    """

    train_loss: float
    steps: int
    wall_s: float


def train_in_memory(
    config: TrainConfig,
    task: TaskData,
    model: Any,
    tokenizer: Any,
    train_rows: Any,
    callbacks: Sequence[TrainerCallback] = (),
) -> Fitted:
    """Train a model as `lrlora train` does, and keep nothing but the model.

    Args:
        config: the settings; those of the adapter and of the run folder are not read.
        task: what is trained.
        model: changed in place; adapted by any method, or not.
        tokenizer: of the model.
        train_rows: encoded rows.
        callbacks: of transformers.Trainer.

    Raises:
        InputError: a setting that transformers refuses; a NaN in the loss.
    """
    with tempfile.TemporaryDirectory(prefix="lrlora-") as folder, open(os.devnull, "w") as nowhere:
        trainer = make_trainer(config, task, model, tokenizer, train_rows, Path(folder), saves=False)
        trainer.remove_callback(PrinterCallback)
        for callback in callbacks:
            trainer.add_callback(callback)
        started = time.perf_counter()
        # many cells train at the same time: their progress bars and log lines would mix
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            trained = trainer.train()
        # accelerate leaves bfloat16 on in the model's forward: whoever scores the model chooses the precision
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        return Fitted(trained.training_loss, trainer.state.global_step, time.perf_counter() - started)
