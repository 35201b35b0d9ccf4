"""The callback that tau = "auto" needs, for transformers.Trainer and everything built on it."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lrlora.tuner.optimize import follow_tau


class TauCallback(TrainerCallback):
    """Calls `lrlora.follow_tau` at the beginning of every optimizer step.

    It has no state of its own: tau is saved in the adapter.

    Example:
        Trainer(model=model, args=args, train_dataset=rows, callbacks=[lrlora.TauCallback()])
    """

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set tau in the next forward pass, if this step is in the schedule's window."""
        follow_tau(kwargs["model"], step=state.global_step, total_steps=state.max_steps)
