"""What a base computes with while its linear layers are quantised, weight by weight; a merge has the full ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lrlora.errors import InputError
from lrlora.export.skeleton import Skeleton
from lrlora.saved.base import BaseOptions, left_plain
from lrlora.tuner.experts import ParamWrapper


def as_quantised(W0: Tensor, options: BaseOptions) -> Tensor:
    """A weight [out, in] of a linear layer as a quantised base holds it, read back, float32.

    Args:
        W0: the full weight.
        options: how the base was loaded, with a quantisation.
    """
    W = W0 if options.dtype == "auto" else W0.to(getattr(torch, options.dtype))
    if options.quantization == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        linear: Any = nn.Linear(W.shape[1], W.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(W, requires_grad=False)
        quantize_(linear, Int8WeightOnlyConfig(version=2))
        return linear.weight.dequantize().float()
    from bitsandbytes import functional

    if options.quantization == "bnb-8bit":
        codes, scales, _ = functional.int8_vectorwise_quant(W.half())
        return codes.float() * scales[:, None] / 127
    packed, state = functional.quantize_4bit(W, blocksize=64, compress_statistics=True, quant_type="nf4")
    return functional.dequantize_4bit(packed, state).float()


def quantised_layers(built: Skeleton) -> dict[str, bool]:
    """The adapted layers that a quantisation changes, and whether their weight is kept transposed (Conv1D)."""
    plain = left_plain(built.base)
    found = {}
    for layer in built.layers():
        module = layer.layer.get_base_layer()
        is_left = any(f"{layer.name}.".startswith(f"{other}.") for other in plain)
        if isinstance(module, nn.Linear | Conv1D) and not isinstance(layer.layer, ParamWrapper) and not is_left:
            found[layer.name] = isinstance(module, Conv1D)
    return found


class Difference:
    """How far the full weights of adapted layers are from the quantised ones, in norms of the updates."""

    def __init__(self, built: Skeleton, options: BaseOptions) -> None:
        self._options = options
        self._layers = {} if options.quantization == "none" else quantised_layers(built)
        self._squares = [0.0, 0.0]
        self._why_not: str | None = None
        try:
            options.check(None if options.revision is None else "on/hub")
        except InputError as error:
            self._layers, self._why_not = {}, str(error)

    def add(self, layer: str, W0: Tensor, dW: Tensor) -> None:
        """Count a weight of a layer and its update, in the layout of the files."""
        if layer not in self._layers or W0.dim() != 2:
            return
        W = W0.T.contiguous() if self._layers[layer] else W0
        moved = as_quantised(W, self._options) - W.float()
        self._squares[0] += torch.linalg.vector_norm(moved, dtype=torch.float64).item() ** 2
        self._squares[1] += torch.linalg.vector_norm(dW, dtype=torch.float64).item() ** 2

    @property
    def relative(self) -> float | None:
        """sqrt(sum ||Q(W0) - W0||_F^2) / sqrt(sum ||dW||_F^2); None where nothing is quantised, or dW is 0."""
        moved, update = self._squares
        return (moved / update) ** 0.5 if update else None

    def said(self, base: str) -> list[str]:
        """A line for the user: what was trained on, what was merged into, and how far they differ."""
        if self._options.quantization == "none":
            return []
        far = (
            f"which differ from those by {self.relative:.3g} times the norm of dW"
            if self.relative is not None
            else f"and how far they differ was not computed{f': {self._why_not}' if self._why_not else ''}"
        )
        return [
            f"it was trained on {base} in {self._options.quantization}, and is merged into its full weights, {far}; "
            "lrlora evaluate RUN --models adapter merged scores both"
        ]
