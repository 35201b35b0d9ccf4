"""How the layers of a model will be computed, in words: which product, which passes, and why not the faster one."""

from __future__ import annotations

import contextlib
from collections import Counter

import torch
from torch import nn

from lrlora import ops
from lrlora.tuner.layer import LRLoraLayer
from lrlora.tuner.model import deltas
from lrlora.tuner.types import Linear


def computation_of(model: nn.Module, autocast: torch.dtype | None = None) -> list[str]:
    """One line per way of computing that occurs in a model, with the number of its layers.

    Args:
        model: a PeftModel with LR-LoRA, in the mode (train or eval) that is asked about.
        autocast: precision in which it will run under autocast, or None without autocast.

    Returns:
        Lines such as "37 layers: x (W0 + dW)^T in one product; passes: native".

    Example:
        print(*computation_of(model), sep=chr(10))
    """
    ways: Counter[str] = Counter()
    for layer in {id(layer): layer for _, layer, _, _ in deltas(model)}.values():
        ways[f"{_product(layer, autocast)}; passes: {_passes(layer)}"] += 1
    return [f"{number} layers: {way}" for way, number in ways.most_common()]


def _product(layer: LRLoraLayer, autocast: torch.dtype | None) -> str:
    if layer.is_weight_replaced:
        return "the module computes with W0 + dW in the place of its parameter"
    if not isinstance(layer, Linear):
        return f"base(x) + the contribution of dW, for {type(layer).__name__}"
    weight = layer.get_base_layer().weight
    assert isinstance(weight, torch.Tensor)
    device = weight.device
    x = torch.empty(0, layer.in_features, dtype=torch.float32 if autocast else weight.dtype, device=device)
    with torch.autocast(device.type, autocast) if autocast else contextlib.nullcontext():
        reason = layer.why_not_combined(x)
    return "x (W0 + dW)^T in one product" if reason is None else f"base(x) + x dW^T, because {reason}"


def _passes(layer: LRLoraLayer) -> str:
    delta = layer.delta(layer.active_here()[0])
    A, B = (delta.A, delta.B) if layer.experts is None else (delta.A[0], delta.B[0])
    return ops.choose("auto", A, B)[1]
