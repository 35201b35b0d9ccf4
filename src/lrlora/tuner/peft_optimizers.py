"""PEFT's helpers that build optimizers look for LoRA's parameters by name, and would miss or misread ours.

LoRA+ works here: `peft.optimizers.create_loraplus_optimizer` gives B its rate. So does the Riemannian optimizer: PEFT's
own code is shown our A and B under LoRA's names. LoRA-FA is refused. Other models get PEFT's own answer.

Why the Riemannian preconditioner (arXiv:2402.02347) holds unchanged: the loss is a smooth function of Z = B A alone,
whatever phi makes of Z. With G its gradient in Z, dL/dA = B^T G and dL/dB = G A^T, as for LoRA, and

    A <- A - lr (B^T B + reg I)^-1 dL/dA,    B <- B - lr dL/dB (A A^T + reg I)^-1

moves Z, to first order and for reg = 0, by a projection of -lr G that depends on Z and not on how it is split into
B and A. c is no part of Z and is left to the optimizer as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
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
        "create_riemannian_optimizer": _riemannian,
    }
    for name, ours in answers.items():
        theirs = getattr(peft.optimizers, name, None)
        if theirs is not None and not hasattr(theirs, "__wrapped__"):
            setattr(peft.optimizers, name, _for_our_models(theirs, ours))


def _for_our_models(theirs: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def chosen(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return ours(theirs, model, *args, **kwargs) if deltas(model) else theirs(model, *args, **kwargs)

    return chosen


def _loraplus(
    theirs: Callable[..., Any],
    model: nn.Module,
    optimizer_cls: Any,
    *,
    lr: float,
    loraplus_lr_ratio: float,
    **kwargs: Any,
) -> Any:
    """LoRA+ (arXiv:2402.12354): B learns `loraplus_lr_ratio` times as fast as A; c at ten times the rate of A."""
    if "loraplus_lr_embedding" in kwargs:
        raise InputError(
            "LR-LoRA trains the adapters of embeddings as it trains others; leave loraplus_lr_embedding out, or give "
            "them a rate of their own with lrlora.param_groups"
        )
    decay = kwargs.pop("loraplus_weight_decay", 0.0)
    groups = param_groups(model, lr, weight_decay=decay, b_lr=lr * loraplus_lr_ratio)
    return optimizer_cls(groups, lr=lr, **kwargs)


def _riemannian(theirs: Callable[..., Any], model: nn.Module, optimizer_cls: Any, **kwargs: Any) -> Any:
    """PEFT's own optimizer over the same parameters, with A and B under the names that it pairs."""
    if stacked := [name for name, _, _, delta in deltas(model) if delta.A.ndim > 2]:
        raise InputError(
            f"the Riemannian optimizer of PEFT preconditions matrices, got stacks of experts ({stacked[0]}, "
            f"{len(stacked)} in all); use torch.optim.AdamW(lrlora.param_groups(model, lr=...))"
        )
    return theirs(_NamedAsLora(model), optimizer_cls, **kwargs)


class _NamedAsLora(nn.Module):
    """The parameters of a model, in its order; A and B of LR-LoRA are called `NUMBER.lora_A.weight` and so on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        names: dict[int, str] = {}
        for number, (*_, delta) in enumerate(deltas(model)):
            names[id(delta.A)], names[id(delta.B)] = f"{number}.lora_A.weight", f"{number}.lora_B.weight"
        self._named = {names.get(id(value), name): value for name, value in model.named_parameters()}

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self._named.items()

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        yield from self._named.values()


def _refused(what: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise InputError(
            f"{what} fits s B A to the full gradient by least squares, which has another answer for LR-LoRA's "
            "s phi(B A); use torch.optim.AdamW(lrlora.param_groups(model, lr=...)), with A frozen if that is wanted"
        )

    return refuse
