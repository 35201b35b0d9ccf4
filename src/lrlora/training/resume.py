"""A trainer from its start, or from the checkpoint of a run that was killed or is extended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from transformers import ProgressCallback, Trainer, TrainerState

from lrlora.saved.names import TRAINER_STATE
from lrlora.tuner.sharded import put_phi_in_root


def run_trainer(trainer: Trainer, checkpoint: Path | None) -> None:
    """Train from the start or from a checkpoint to the end."""
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
        if state.global_step >= state.max_steps and state.global_step >= _steps_of(trainer):
            # the Trainer would train a step more
            best = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
            cast(Any, trainer.model).load_adapter(best or str(checkpoint), "default", is_trainable=True)
            trainer.state = state
            return
    if trainer.is_fsdp_enabled:
        put_phi_in_root(cast(torch.nn.Module, trainer.model))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _steps_of(trainer: Trainer) -> int:
    """All steps of a training, which may be more than the checkpoint was written for."""
    return trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]


@contextlib.contextmanager
def ended_bars(trainer: Trainer) -> Iterator[None]:
    """End the line of a progress bar that an error has left open: what is said next has a line of its own."""
    try:
        yield
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressCallback):
                for bar in (callback.training_bar, callback.prediction_bar):
                    if bar is not None:
                        bar.close()
