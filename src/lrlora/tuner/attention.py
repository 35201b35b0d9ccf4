"""Adapters on torch.nn.MultiheadAttention, which reads the weights of its four projections without calling them.

So W0 + dW takes the place of each weight while the attention runs, as for parameters (`experts`). As PEFT's LoRA does,
in_proj_weight (query, key and value) gets one update [3 embed, embed], out_proj another; both have the rank of the
attention, and the names of their tensors are those of PEFT's LoRA.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from lrlora.errors import InputError
from lrlora.tuner.config import LRLoraConfig
from lrlora.tuner.experts import Turns, adapted_parameter, warn_of_rounding
from lrlora.tuner.layer import LRLoraLayer
from lrlora.tuner.types import Linear

OUT = ".base_layer.out_proj"
"""What the name of an adapted attention's out_proj has after that of the attention."""


class MultiheadAttention(nn.Module, LRLoraLayer):
    """nn.MultiheadAttention; this layer holds the update of in_proj_weight, and out_proj that of its own weight."""

    parameter_name = "in_proj_weight"
    is_weight_replaced = True

    def __init__(self, base_layer: nn.MultiheadAttention) -> None:
        super().__init__()
        LRLoraLayer.__init__(self, base_layer, *base_layer.in_proj_weight.shape)
        warn_of_rounding("in_proj_weight and out_proj", base_layer.in_proj_weight.dtype)
        out = Linear(base_layer.out_proj)
        out.is_weight_replaced = True
        base_layer.out_proj = out  # pyright: ignore[reportAttributeAccessIssue]
        self._turns = Turns()

    def __getattr__(self, name: str) -> Any:
        """What the attention itself has: the modules around it read its batch_first, num_heads, out_proj and others."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def update_layer(self, adapter_name: str, rank: int, alpha: float, config: LRLoraConfig, name: str = "") -> None:
        """Add an adapter to both weights, or replace the one of the same name."""
        reason = why_not_with(config)
        if reason is not None:
            raise InputError(f"LR-LoRA cannot adapt {name}: {reason}; pass 0 or name it in exclude_modules")
        super().update_layer(adapter_name, rank, alpha, config, f"{name}.in_proj_weight")
        self.out_proj.update_layer(adapter_name, rank, alpha, config, f"{name}.out_proj")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The attention, computed with W0 + dW of the active adapters in both weights."""
        if kwargs.pop("adapter_names", None) is not None:
            raise InputError(
                "lrlora.MultiheadAttention does not support mixed adapter batches: it reads one weight for all rows; "
                "give each adapter a batch of its own, or leave adapter_names out"
            )
        # all threads read one attribute of the module, so they take turns, those without an adapter as well
        with contextlib.ExitStack() as stack:
            if not torch.compiler.is_compiling():
                stack.enter_context(self._turns.lock)
            for layer in (self, self.out_proj):
                if layer.disable_adapters and layer.merged:
                    layer.unmerge()
                active = layer.active_here()
                if active and not layer.disable_adapters and not layer.merged:
                    stack.enter_context(adapted_parameter(layer, active))
            return self.base_layer(*args, **kwargs)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The attention itself with its own out_proj, both merged if asked for."""
        base: Any = self.get_base_layer()
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            base.out_proj.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        base.out_proj = base.out_proj.get_base_layer()
        return base

    def __repr__(self) -> str:
        return "lrlora." + super().__repr__()


def why_not_as_one(attention: nn.MultiheadAttention) -> str | None:
    """Why an attention cannot be adapted; None where it can."""
    if attention.in_proj_weight is None:
        return "its kdim or vdim differs from embed_dim, so that query, key and value have three weights"
    for name, weight in (("in_proj_weight", attention.in_proj_weight), ("out_proj", attention.out_proj.weight)):
        if not weight.is_floating_point() or type(weight.data) is not torch.Tensor or weight.element_size() == 1:
            return f"its {name} is quantised ({type(weight.data).__name__}, {weight.dtype})"
    return None


def why_not_with(config: LRLoraConfig) -> str | None:
    """Why no attention can be adapted with these settings; None where it can."""
    if config.lora_dropout > 0:
        return f"lora_dropout={config.lora_dropout} acts on the input of an update, which its projections do not show"
    return None
