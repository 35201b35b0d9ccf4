"""Tells the rows of images which pass over them begins: random crops are drawn anew in each."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lrlora.data.pixels import Pixels


class DrawAnew(TrainerCallback):
    """Calls `begin` of the rows with the number of the pass, also of a run that is resumed within one."""

    def __init__(self, rows: Pixels) -> None:
        self._rows = rows

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the data loader begins."""
        self._rows.begin(int(state.epoch or 0))
