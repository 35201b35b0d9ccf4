"""The types of layer that can be adapted by adding a share to their output; which module becomes which: `targets`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers.pytorch_utils import Conv1D

from lrlora.internals import convolve, has_hooks
from lrlora.tuner.delta import LRLoraDelta
from lrlora.tuner.internals import quantization_extra_repr
from lrlora.tuner.kept import FEW_ROWS
from lrlora.tuner.layer import LRLoraLayer

# torch's own, to detect a library that replaces it for all layers
_LINEAR_FORWARD = nn.Linear.forward


class Linear(nn.Module, LRLoraLayer):
    """nn.Linear, GPT-2's Conv1D (the same with a transposed weight), and quantised linear layers."""

    def extra_repr(self) -> str:
        """Names the quantisation, where there is one."""
        return quantization_extra_repr(self)

    def __init__(self, base_layer: Any, quantization: Any = None) -> None:
        super().__init__()
        self.is_transposed = isinstance(base_layer, Conv1D)
        if self.is_transposed:
            in_features, out_features = base_layer.weight.shape
        else:
            in_features, out_features = base_layer.in_features, base_layer.out_features
        LRLoraLayer.__init__(self, base_layer, out_features, in_features, quantization)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """y = x (W0 + sum of the active adapters' dW)^T + bias."""
        active = self.active_here()
        is_plain = not args and not kwargs and active and not self.disable_adapters and not self.merged
        if is_plain and self._is_worth_a_sum(x, active[0]) and self.why_not_combined(x) is None:
            base: Any = self.base_layer
            return self.made(active[0], LRLoraDelta.output, x, base.weight, base.bias)
        return self.adapted(x, *args, **kwargs)

    def share(self, x: Tensor, adapter_name: str) -> Tensor:
        """x dW^T."""
        return self.made(adapter_name, LRLoraDelta.output, self.lrlora_dropout[adapter_name](x))

    def to_layout(self, matrix: Tensor) -> Tensor:
        """dW, transposed for Conv1D."""
        return matrix.T if self.is_transposed else matrix

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """True, of linear layers only: PEFT's convert_to_lora writes their names and shapes for any layer."""
        return True

    def why_not_combined(self, x: Tensor) -> str | None:
        """Why base(x) and x dW^T must stay two products; None where the one product x (W0 + dW)^T is right."""
        base: Any = self.base_layer
        active = self.active_here()
        if len(active) != 1:
            return f"{len(active)} adapters are active"
        if self.quantization_backend is not None:
            return f"W0 is quantised ({self.quantization_backend.backend_name})"
        reason = why_not_bypassed(base)
        if reason is not None:
            return reason
        if base.weight.dtype != torch.float32 or x.dtype != torch.float32:
            return f"W0 is {base.weight.dtype} and x {x.dtype}: small updates would be rounded away in W0 + dW"
        if torch.is_autocast_enabled(x.device.type):
            return "autocast would round W0 + dW"
        if self.training and not isinstance(self.lrlora_dropout[active[0]], nn.Identity):
            return "dropout acts only on the input of the update"
        if base.weight.requires_grad:
            return "W0 is trained as well"
        return None

    def _is_worth_a_sum(self, x: Tensor, adapter_name: str) -> bool:
        """Not for few rows without gradients: reading W0 and the cached dW costs less there than adding them."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return True
        if x.numel() >= FEW_ROWS * self.in_features:
            return True
        # in training W0 + dW is formed as with gradients, bit for bit, until dW is cached
        return self.training and not self.delta(adapter_name).kept.is_filled()

    def __repr__(self) -> str:
        return "lrlora." + super().__repr__()


class Embedding(nn.Module, LRLoraLayer):
    """nn.Embedding; of phi only the rows that are looked up are computed. Dropout does not apply."""

    def __init__(self, base_layer: nn.Embedding) -> None:
        super().__init__()
        LRLoraLayer.__init__(self, base_layer, base_layer.num_embeddings, base_layer.embedding_dim)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The rows x of W0 + dW."""
        return self.adapted(x, *args, **kwargs)

    def share(self, x: Tensor, adapter_name: str) -> Tensor:
        """The rows x of dW."""
        rows, place = torch.unique(x, return_inverse=True)
        found = embedding(place, self.made(adapter_name, LRLoraDelta.update, rows))
        # some models multiply inside their embedding
        scale = getattr(self.get_base_layer(), "embed_scale", None)
        return found if scale is None else found * torch.as_tensor(scale, device=found.device)

    def __repr__(self) -> str:
        return "lrlora." + super().__repr__()


class Conv(nn.Module, LRLoraLayer):
    """nn.Conv1d, Conv2d and Conv3d, with groups: dW is [out channels, in channels / groups * kernel], reshaped."""

    def __init__(self, base_layer: Any) -> None:
        super().__init__()
        out_features = base_layer.weight.shape[0]
        LRLoraLayer.__init__(self, base_layer, out_features, base_layer.weight[0].numel())

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The convolution of x with W0 + dW."""
        return self.adapted(x, *args, **kwargs)

    def share(self, x: Tensor, adapter_name: str) -> Tensor:
        """The convolution of x with dW."""
        base: Any = self.get_base_layer()
        x = self.lrlora_dropout[adapter_name](x)
        dW = self.to_layout(self.made(adapter_name, LRLoraDelta.update))
        return convolve(base, x, dW.to(x.dtype))

    def to_layout(self, matrix: Tensor) -> Tensor:
        """dW [out, in] as [out channels, in channels / groups, *kernel]."""
        weight: Any = self.get_base_layer().weight
        return matrix.reshape(weight.shape)

    def __repr__(self) -> str:
        return "lrlora." + super().__repr__()


def why_not_bypassed(base: nn.Module) -> str | None:
    """Why a base layer must be called; None for a plain nn.Linear to which nobody has attached anything."""
    # parametrizations make a subclass; pruning and the older weight_norm are hooks
    if type(base) is not nn.Linear:
        return f"the base layer is a {type(base).__name__}"
    if "forward" in vars(base) or nn.Linear.forward is not _LINEAR_FORWARD:
        return "the base layer's forward was exchanged"
    if has_hooks(base):
        return "the base layer has hooks"
    return None
