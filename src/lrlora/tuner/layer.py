"""What adapted layers of every type have: the bookkeeping that PEFT asks for, merging, and the mixed batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lrlora.errors import InputError
from lrlora.internals import own_parameters
from lrlora.tuner.config import LRLoraConfig
from lrlora.tuner.delta import LRLoraDelta
from lrlora.tuner.internals import BaseTunerLayer, check_adapters_to_merge
from lrlora.tuner.snapshot import WeightSnapshot, unpack

BASE = "__base__"
"""The adapter name that means, in a mixed batch, no adapter."""


class LRLoraLayer(BaseTunerLayer):
    """Adapters on one layer. A subclass says what matrix dW is [out, in] and how an update acts on an input."""

    adapter_layer_names = ("lrlora_delta",)
    other_param_names = ("r", "lora_alpha", "scaling", "configured_scaling", "lrlora_dropout")
    base_layer: nn.Module
    experts: int | None = None
    parameter_name = "weight"
    is_weight_replaced = False
    """Whether the base module reads the parameter itself, and so runs with W0 + dW in its place."""

    def __init__(self, base_layer: nn.Module, out_features: int, in_features: int, quantization: Any = None) -> None:
        self.base_layer = base_layer
        self.out_features, self.in_features = out_features, in_features
        self.quantization_backend = quantization
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.configured_scaling: dict[str, float] = {}
        self.lrlora_dropout = nn.ModuleDict()
        self.lrlora_delta = nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._before_merge: WeightSnapshot | None = None

    def update_layer(self, adapter_name: str, rank: int, alpha: float, config: LRLoraConfig, name: str = "") -> None:
        """Add an adapter to this layer, whose name in the model is `name`, or replace the one of the same name."""
        self.r[adapter_name] = rank
        self.configure(adapter_name, rank, alpha, config)
        delta = LRLoraDelta(self.in_features, self.out_features, rank, config, self.experts, name)
        is_training: bool = self.training  # pyright: ignore[reportAttributeAccessIssue]
        self.lrlora_delta[adapter_name] = delta.train(is_training)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def configure(self, adapter_name: str, rank: int, alpha: float, config: LRLoraConfig) -> None:
        """Set s and the dropout of an adapter as its configuration says."""
        self.lora_alpha[adapter_name] = alpha
        self.scaling[adapter_name] = self.configured_scaling[adapter_name] = config.scale_of(rank, alpha)
        held: Any = self.lrlora_dropout[adapter_name] if adapter_name in self.lrlora_dropout else None
        if held is None or getattr(held, "p", 0.0) != config.lora_dropout:
            dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()
            self.lrlora_dropout[adapter_name] = dropout.train(self.training)  # pyright: ignore[reportAttributeAccessIssue]

    def take_out(self, adapter_name: str) -> None:
        """Forget an adapter, and leave it to others which ones are active."""
        for name in self.adapter_layer_names + self.other_param_names:
            held = getattr(self, name)
            if adapter_name in held:
                del held[adapter_name]

    def delta(self, adapter_name: str) -> LRLoraDelta:
        """The module that holds A, B, theta and tau of an adapter."""
        return self.lrlora_delta[adapter_name]  # pyright: ignore[reportReturnType]

    def made(self, adapter_name: str, make: Callable[..., Tensor], *given: Tensor | None) -> Tensor:
        """What a method of LRLoraDelta makes of an adapter at its scale, called as FSDP and ZeRO-3 need it."""
        return self.delta(adapter_name)(make, self.scaling[adapter_name], *given)

    def share(self, x: Tensor, adapter_name: str) -> Tensor:
        """What an adapter adds to base(x). Every type of layer has its own."""
        raise NotImplementedError

    def to_layout(self, matrix: Tensor) -> Tensor:
        """dW [out, in] in the layout of the base layer's weight."""
        return matrix

    @torch.no_grad()
    def get_delta_weight(self, adapter: str) -> Tensor:
        """dW = s phi(B A) of an adapter, float32, in the layout of the base layer's weight."""
        return self.to_layout(self.update_matrix(adapter))

    @torch.no_grad()
    def update_matrix(self, adapter: str) -> Tensor:
        """dW = s phi(B A) [out, in], or [experts, out, in], of an adapter, float32."""
        return self.made(adapter, LRLoraDelta.uncached_update)

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set s to `scale` times what the configuration says: alpha / r, or alpha / sqrt(r) with rsLoRA."""
        if adapter in self.scaling:
            self.scaling[adapter] = scale * self.configured_scaling[adapter]

    def scale_layer(self, scale: float) -> None:
        """Multiply s of the active adapters."""
        for adapter in self.active_here():
            self.scaling[adapter] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide s of the active adapters; None, or 0, which cannot be divided by, gives the configured s back."""
        for adapter in self.active_here():
            if scale:
                self.scaling[adapter] /= scale
            else:
                self.scaling[adapter] = self.configured_scaling[adapter]

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT would cast the adapter to the base's dtype and later only the parameters back: tau would be rounded
        weight = getattr(self.get_base_layer(), self.parameter_name, None)
        target = device if device is not None else getattr(weight, "device", None)
        delta = self.delta(adapter_name)
        if target is not None and target.type != "meta" and delta.A.device.type != "meta":
            delta.to(target)

    def active_here(self) -> list[str]:
        """Names of the active adapters that this layer has."""
        return [name for name in self.active_adapters if name in self.lrlora_delta]

    def adapted(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """base(x) + the contribution of every active adapter, or of the adapter named for each row of the batch."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        if adapter_names is not None:
            return self._mixed_batch(x, adapter_names, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        active = self.active_here()
        if self.disable_adapters or self.merged or not active:
            return result
        result = self._safe_to_change(result)
        for name in active:
            result = result + self.share(x, name).to(result.dtype)
        return result

    def _mixed_batch(self, x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        if self.merged:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )
        if len(x) != len(adapter_names):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        result = self._safe_to_change(self.base_layer(x, *args, **kwargs)).clone()
        for name in set(adapter_names) - {BASE}:
            if name in self.lrlora_delta:
                rows = [row for row, wanted in enumerate(adapter_names) if wanted == name]
                result[rows] = result[rows] + self.share(x[rows], name).to(result.dtype)
        return result

    def _safe_to_change(self, result: Tensor) -> Tensor:
        return (
            result if self.quantization_backend is None else self.quantization_backend.maybe_clone_base_result(result)
        )

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add dW of the adapters to the base weight; a copy of the original weight is kept for `unmerge`.

        The sum is computed in float32 from the original weight and all merged adapters, then cast (or quantised again):
        merging one adapter after another equals merging them at once.

        Args:
            safe_merge: refuse to touch the weight where the result would hold NaN or inf.
            adapter_names: which adapters; None means the active ones.

        Raises:
            ValueError: with safe_merge, where the merged weight is not finite.
            TypeError: a quantisation whose weights cannot be read back.
            InputError: a weight that is computed anew for every call, by a parametrization or a pruning mask.
        """
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.lrlora_delta]
        if not names:
            return
        if not self.is_readable:
            method = self.quantization_backend.backend_name  # pyright: ignore[reportOptionalMemberAccess]
            raise TypeError(
                f"cannot merge into a weight that is quantised by {method}: it cannot be read back; use the adapter "
                "without merging, or put it on the base that is not quantised and merge there"
            )
        self._check_writable()
        wanted = [*self.merged_adapters, *names]
        update = sum_of(self.get_delta_weight(name) for name in wanted)
        merged_before = list(self.merged_adapters)
        self._restore()
        # before anything reads the weight: reading a quantised one may change it
        is_quantised = self.quantization_backend is not None
        snapshot = WeightSnapshot(self.get_base_layer(), self.parameter_name, is_quantised)
        total = self.float_weight().float() + update
        if safe_merge and not torch.isfinite(total).all():
            if merged_before:
                self.merge(adapter_names=merged_before)
            raise ValueError(
                f"NaNs detected in the merged weights. The adapter {', '.join(names)} seems to be broken: "
                "its update holds NaN or inf"
            )
        for name in names:
            self.delta(name).kept.drop()
        self._before_merge = snapshot
        self._write_weight(total, update)
        self.merged_adapters.extend(wanted)

    def _check_writable(self) -> None:
        base = self.get_base_layer()
        if self.quantization_backend is None and self.parameter_name not in own_parameters(base):
            raise InputError(
                f"cannot merge into {self.parameter_name} of {type(base).__name__}: it is no parameter, but computed "
                "from others (weight_norm, spectral_norm, a parametrization, pruning), which would undo the merge; "
                "make it plain first, with torch.nn.utils.parametrize.remove_parametrizations or prune.remove"
            )

    def unmerge(self) -> None:
        """Put the base weight back, bit for bit as it was before `merge`."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self._restore()

    @property
    def is_readable(self) -> bool:
        """Whether the base layer's weight can be read: not where a quantisation offers nothing but its product."""
        return self.quantization_backend is None or self.quantization_backend.supports_merge

    def float_weight(self) -> Tensor:
        """The base layer's weight; dequantised where it is quantised."""
        base: Any = self.get_base_layer()
        if self.quantization_backend is None:
            return getattr(base, self.parameter_name).data
        unpack(base)
        return self.quantization_backend.get_base_weight(base)

    def _write_weight(self, total: Tensor, update: Tensor) -> None:
        base: Any = self.get_base_layer()
        backend = self.quantization_backend
        if backend is None:
            weight = getattr(base, self.parameter_name)
            weight.data = total.to(weight.dtype)
            return
        backend.set_base_weight(self, total.to(self.float_weight().dtype))
        error = (self.float_weight().float() - total).norm() / update.norm().clamp(min=1e-30)
        warnings.warn(
            f"merged into {backend.backend_name} weights, which rounds: the error is {error:.0%} of the norm of the "
            "update; merge into a base that is not quantised to avoid it",
            stacklevel=4,
        )

    def _restore(self) -> None:
        if self._before_merge is None:
            return
        base = self._before_merge.restore()
        if base is not self.get_base_layer():
            self.base_layer = base
        self._before_merge = None
        self.merged_adapters.clear()


def sum_of(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    first, *rest = tensors
    return sum(rest, start=first)
