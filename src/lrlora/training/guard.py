"""Stops a training whose loss or gradients are NaN or inf, before they reach the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lrlora.errors import InputError
from lrlora.internals import norms
from lrlora.saved.checkpoints import whole_checkpoints


class NonFiniteGuard(TrainerCallback):
    """Raises before the optimizer step where a loss or a gradient is NaN or inf.

    Weights and checkpoints stay as they were. The loss is looked at as well as the gradients, because clipping turns a
    gradient whose norm overflows into zeros. It costs one norm over the adapter's gradients per step. Not for fp16,
    whose loss scaler meets inf on purpose and skips the step itself.
    """

    def __init__(self) -> None:
        self._losses: list[torch.Tensor] = []
        self._hook: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to record the losses that the model returns."""

        def remember(module: Any, _: Any, output: Any) -> None:
            loss = getattr(output, "loss", None)
            if module.training and loss is not None:
                self._losses.append(loss.detach())

        self._hook = kwargs["model"].register_forward_hook(remember)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop listening."""
        self._hook.remove()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the losses since the last step and at all gradients at once."""
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        # DeepSpeed does not show the gradients: with it only the loss is checked
        numbers = [*self._losses, *(norms(gradients) if gradients else [])]
        self._losses.clear()
        if args.fp16 or not numbers or torch.isfinite(torch.stack([n.float().mean() for n in numbers])).all():
            return
        kept = whole_checkpoints(Path(args.output_dir)) if args.output_dir else []
        where = f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was written yet"
        raise InputError(
            f"the loss became NaN or inf at step {state.global_step + 1}; training stopped, {where}; "
            "lower --learning_rate or --c_learning_rate, or look for bad rows"
        )
