"""Losses and learning rates while training: a line of log.jsonl each time that the Trainer logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lrlora.files import append_line, drop_lines_after
from lrlora.saved.names import LOG

# what the Trainer says of time and work: the machine's, not the training's
_LEFT_OUT = ("_runtime", "_per_second", "total_flos", "_time")


class LogFile(TrainerCallback):
    """Writes {"step", "epoch", "loss", "learning_rate", "c_learning_rate", "grad_norm"}, and what evaluations find.

    A loss is the mean since the line before. Every checkpoint has a line: a training that is resumed from one begins a
    new mean there. It goes on in the same file, without a step twice. Of several processes the first one writes. The
    learned ranks are in ranks.jsonl.

    Args:
        folder: the run folder.
        c_factor: rate of the coefficients c, in rates of A and B; None where there are none.
    """

    def __init__(self, folder: Path, c_factor: float | None) -> None:
        self._path, self._c_factor = folder / LOG, c_factor

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop the lines after the checkpoint."""
        if state.is_world_process_zero:
            drop_lines_after(self._path, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A line at every checkpoint."""
        control.should_log = control.should_log or control.should_save

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the line."""
        found = {k: v for k, v in (logs or {}).items() if not k.endswith(_LEFT_OUT) and not k.startswith("ranks/")}
        if not state.is_world_process_zero or not set(found) - {"epoch", "train_loss"}:
            return
        if self._c_factor is not None and "learning_rate" in found:
            found["c_learning_rate"] = found["learning_rate"] * self._c_factor
        append_line(self._path, json.dumps({"step": state.global_step, **found}))


def mean_loss(history: list[dict[str, Any]]) -> float | None:
    """The mean loss over all steps in a Trainer's `state.log_history`, also of a training that was resumed."""
    means = [(line["step"], line["loss"]) for line in history if "loss" in line]
    if not means:
        return None
    before = [0, *(step for step, _ in means[:-1])]
    return sum(loss * (step - first) for (step, loss), first in zip(means, before, strict=True)) / means[-1][0]
