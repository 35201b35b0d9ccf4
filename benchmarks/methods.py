"""The methods that are measured, all on the same modules, with the same rank where they have one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
from torch import nn

import lrlora
from lrlora import ops
from lrlora.tuner.delta import LRLoraDelta

OURS = ("lrlora native", "lrlora eager", "lrlora definition")
"""`definition` is the naive formula, differentiated by autograd."""

CARRIED: dict[str, dict[str, Any]] = {
    "lrlora carrier": {"carrier": "signs"},
    "lrlora carrier linear": {"carrier": "signs", "phi": "linear"},
}
"""With a carrier: the default phi, and the form that has no knee."""

CONFIGS: dict[str, Callable[..., Any]] = {
    "LoRA": peft.LoraConfig,
    "DoRA": lambda **common: peft.LoraConfig(use_dora=True, **common),
    "HiRA": peft.HiraConfig,
    "RandLoRA": peft.RandLoraConfig,
    "LoHa": peft.LoHaConfig,
}

NAMES = ("full fine-tuning", *CONFIGS, *OURS)
QUICK = tuple(name for name in NAMES if name not in OURS[1:])
"""Without the plain passes and the definition, which a benchmark need not wait for more than once."""
FEW = ("full fine-tuning", "LoRA", "DoRA", "lrlora native")
"""Where a single step takes seconds: the bounds, and the usual choice besides LoRA."""


def adapt(name: str, model: nn.Module, r: int, num_basis: int = 11, **common: Any) -> nn.Module:
    """A model under a method: the linear layers named by `target_modules`, or all of its weights."""
    if name == "full fine-tuning":
        return model.requires_grad_(True)
    if name in CONFIGS:
        return peft.get_peft_model(model, CONFIGS[name](r=r, **common))
    kind, impl = name.rsplit(maxsplit=1)
    adapted = peft.get_peft_model(
        model, lrlora.LRLoraConfig(r=r, num_basis=num_basis, **common, **CARRIED.get(kind, {}))
    )
    for _, _, _, delta in lrlora.tuner.deltas(adapted):
        nn.init.normal_(delta.B, std=0.01)
        delta.forward = _forced(delta, impl)
    return adapted


def _forced(delta: Any, impl: str) -> Callable[..., Any]:
    """The layer's product with the backend that is named here, also where "auto" would choose another."""

    def forward(make, scale, x, W0=None, bias=None):
        assert make is LRLoraDelta.output
        how: dict[str, Any] = {"phi": delta.phi, "carrier": delta.carrier, "impl": impl}
        return ops.adapted_linear(x, W0, bias, delta.A, delta.B, delta.c, delta.tau, scale, **how)

    return forward
