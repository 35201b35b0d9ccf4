"""Which numbers the settings of a training may be, each checked before anything is read."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lrlora.errors import InputError

# least value, and what to do instead of a smaller one
_LEAST = {
    "max_length": (1, "; leave it out for the model's own"),
    "image_size": (1, "; leave it out for the model's own"),
    "batch_size": (1, ""),
    "gradient_accumulation": (1, ""),
    "save_steps": (1, ""),
    "train_rows": (1, "; leave it out for all rows"),
    "eval_rows": (1, "; leave it out for all rows"),
    "rank_steps": (0, "; 0 records nothing"),
    "weight_decay": (0, ""),
    "warmup_steps": (0, ""),
    "max_grad_norm": (0, "; 0 leaves gradients as they are"),
    "epochs": (0, ""),
    "seed": (0, ""),
    "split_seed": (0, ""),
}
_ABOVE_0 = ("learning_rate", "c_learning_rate")
_LARGEST_SEED = 2**32 - 1


def check_numbers(settings: Any) -> None:
    """Refuse numbers outside their range in a dataclass of settings.

    Raises:
        InputError: NaN, inf, or a number outside its range.
    """
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    numbers = {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    for name, value in numbers.items():
        least, advice = _LEAST.get(name, (-math.inf, ""))
        if not math.isfinite(value):
            raise InputError(f"{name} must be a finite number, got {value}")
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}{advice}")
        if name in _ABOVE_0 and value <= 0:
            raise InputError(f"{name} must be above 0, got {value}")
        if name.endswith("seed") and value > _LARGEST_SEED:
            raise InputError(f"{name} must be at most {_LARGEST_SEED}, got {value}")


def check_evaluations(settings: Any) -> None:
    """Refuse what needs evaluations while training, where there are none.

    Raises:
        InputError: the best checkpoint, or an early end, without `eval_steps`.
    """
    needing = ["load_best_model_at_end"] if settings.trainer.get("load_best_model_at_end") else []
    needing += [] if settings.early_stopping_patience is None else ["early_stopping_patience"]
    if needing and settings.eval_steps is None:
        raise InputError(f"{needing[0]} needs evaluations while training: pass eval_steps as well")


def check_scheduler(name: str, has_arguments: bool = False) -> None:
    """Refuse a schedule that transformers does not know, or that needs more than its name and has no arguments.

    Raises:
        InputError: with those that there are.
    """
    if name == "linear":
        return
    from transformers import SchedulerType

    # the first two follow a metric while training; the others have settings of their own, lr_scheduler_kwargs
    needy = {"reduce_lr_on_plateau", "greedy"}
    if not has_arguments:
        needy |= {"cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay"}
    known = [kind.value for kind in SchedulerType if kind.value not in needy]
    if name not in known:
        if name in ("cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay"):
            raise InputError(f"lr_scheduler {name} has settings of its own; pass lr_scheduler_kwargs as well")
        raise InputError(f"lr_scheduler must be one of {', '.join(known)}, got {name!r}")
