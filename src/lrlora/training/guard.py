"""Stops a training whose numbers have gone bad, before they reach the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lrlora.errors import InputError
from lrlora.training.folder import last_checkpoint


class NonFiniteGuard(TrainerCallback):
    """Raises before the optimizer step where a gradient is NaN or inf, which a NaN in the loss makes of all of them.

    The weights and the checkpoints stay as they were. One norm over the adapter's gradients per step is all it costs.
    Not for fp16, whose loss scaler meets inf on purpose and skips the step itself.
    """

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at all gradients at once."""
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if args.fp16 or not gradients:
            return
        norms = torch.stack([n.float() for n in torch._foreach_norm(gradients)])
        if not torch.isfinite(norms).all():
            kept = last_checkpoint(Path(args.output_dir)) if args.output_dir else None
            where = f"the last good checkpoint is {kept}" if kept else "no checkpoint was written yet"
            raise InputError(
                f"the loss became NaN or inf at step {state.global_step + 1}; training stopped, {where}; "
                "lower --learning_rate or --c_learning_rate, or look for bad rows"
            )
