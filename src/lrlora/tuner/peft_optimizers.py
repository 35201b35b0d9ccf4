"""PEFT's helpers that build optimizers look for LoRA's parameters by name, and would misread ours.

LoRA+ works here: `peft.optimizers.create_loraplus_optimizer` gives B its rate. LoRA-FA and the
Riemannian optimizer correct the gradient of B with (A A^T)^-1, which is right for s B A and not for s phi(B A): both
are refused. Other models get PEFT's own answer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import peft.optimizers
from torch import nn

from lrlora.errors import InputError
from lrlora.tuner.model import deltas
from lrlora.tuner.optimize import param_groups


def answer_for_peft() -> None:
    """Replace PEFT's functions by ones that know LR-LoRA; calling it again is harmless."""
    answers = {
        "create_loraplus_optimizer": _loraplus,
        "create_lorafa_optimizer": _refused("LoRA-FA"),
        "create_riemannian_optimizer": _refused("the Riemannian optimizer"),
    }
    for name, ours in answers.items():
        theirs = getattr(peft.optimizers, name, None)
        if theirs is not None and not hasattr(theirs, "__wrapped__"):
            setattr(peft.optimizers, name, _for_our_models(theirs, ours))


def _for_our_models(theirs: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def chosen(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (ours if deltas(model) else theirs)(model, *args, **kwargs)

    return chosen


def _loraplus(model: nn.Module, optimizer_cls: Any, *, lr: float, loraplus_lr_ratio: float, **kwargs: Any) -> Any:
    """LoRA+ (arXiv:2402.12354): B learns `loraplus_lr_ratio` times as fast as A; c at ten times the rate of A."""
    if "loraplus_lr_embedding" in kwargs:
        raise InputError(
            "LR-LoRA trains the adapters of embeddings as it trains others; leave loraplus_lr_embedding out, or give "
            "them a rate of their own with lrlora.param_groups"
        )
    decay = kwargs.pop("loraplus_weight_decay", 0.0)
    groups = param_groups(model, lr, weight_decay=decay, b_lr=lr * loraplus_lr_ratio)
    return optimizer_cls(groups, lr=lr, **kwargs)


def _refused(what: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise InputError(
            f"{what} is derived for an update s B A, got LR-LoRA's s phi(B A); use "
            "torch.optim.AdamW(lrlora.param_groups(model, lr=...)), with A frozen if that is what you want"
        )

    return refuse
