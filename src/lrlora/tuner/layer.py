"""The adapted layer inside PEFT: a frozen nn.Linear and, per adapter, the factors and the phi of its update."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lrlora import ops
from lrlora.errors import InputError
from lrlora.method.nonlinearity import Form, initial_coefficients
from lrlora.method.rank import product_rms
from lrlora.tuner.config import LRLoraConfig
from lrlora.tuner.internals import BaseTunerLayer, check_adapters_to_merge
from lrlora.tuner.kept import KeptWeight


class LRLoraDelta(nn.Module):
    """A, B, c and tau of one adapter on one layer; calling it adds the update to a product.

    All of them stand on one module without children, and are only used inside its forward: the layout that DDP, FSDP1
    and FSDP2 can wrap. They stay in float32 whatever the base is stored in. `tau` is a buffer in the units of B A; inf
    means that it was not calibrated yet (tau = "auto"), and phi is the identity.
    """

    tau: Tensor
    c: Tensor | None

    def __init__(self, in_features: int, out_features: int, rank: int, config: LRLoraConfig) -> None:
        super().__init__()
        self.phi: Form = config.phi
        self.num_basis = config.num_basis
        self.is_knee_followed = False
        self._kept = KeptWeight()
        self.A = nn.Parameter(torch.empty(rank, in_features))
        self.B = nn.Parameter(torch.empty(out_features, rank))
        # Sine-LoRA divides by sqrt(in): without it sin(omega B A) would be of the size of W0 itself
        self.gain = 1 / math.sqrt(in_features) if config.phi == "sine" else 1.0
        if config.phi == "sine":
            self.c = None
            tau = 1 / config.omega
        else:
            c = initial_coefficients(config.num_basis, config.phi)
            if config.share == "frozen":
                self.register_buffer("c", c)
            else:
                self.c = nn.Parameter(c)
            tau = math.inf if config.tau == "auto" else float(config.tau) / math.sqrt(in_features)
        self.register_buffer("tau", torch.tensor(tau, dtype=torch.float32))
        self.reset_factors(config.init_weights)

    def reset_factors(self, init_weights: bool | str) -> None:
        """A and B as the config asks: B = 0 unless init_weights is False."""
        if init_weights == "gaussian":
            nn.init.normal_(self.A, std=1 / self.A.shape[0])
        else:
            nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        if init_weights is False:
            nn.init.kaiming_uniform_(self.B, a=math.sqrt(5))
        else:
            nn.init.zeros_(self.B)

    @property
    def weight(self) -> Tensor:
        """A, under the name by which PEFT's FSDP wrapping policy finds trainable leaf modules."""
        return self.A

    def forward(self, x: Tensor, W0: Tensor | None, bias: Tensor | None, scale: float) -> Tensor:
        """x (W0 + dW)^T + bias, or x dW^T where W0 is None."""
        if not self.training and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return self._evaluate(x, W0, bias, scale)
        return ops.adapted_linear(x, W0, bias, self.A, self.B, self.c, self.tau, scale * self.gain, phi=self.phi)

    def _evaluate(self, x: Tensor, W0: Tensor | None, bias: Tensor | None, scale: float) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype

        def make() -> Tensor:
            s = scale * self.gain
            return ops.adapted_weight(W0, self.A, self.B, self.c, self.tau, s, phi=self.phi, dtype=dtype)

        weight = self._kept.get([W0, self.A, self.B, self.c, self.tau], (scale, dtype), make)
        return linear(x, weight, None if bias is None else bias.to(dtype))

    def train(self, mode: bool = True) -> LRLoraDelta:
        """Enter training or evaluation; a weight kept for evaluation is dropped either way."""
        self._kept.drop()
        return super().train(mode)

    def drop_kept_weight(self) -> None:
        """Free the weight kept for evaluation, if there is one."""
        self._kept.drop()

    def delta_weight(self, scale: float) -> Tensor:
        """dW [out, in], float32, without a graph."""
        return ops.delta_weight(self.A, self.B, self.c, self.tau, scale * self.gain, phi=self.phi)

    @torch.no_grad()
    def set_knee(self, kappa: float) -> None:
        """tau = kappa RMS(B A); left as it is while B A is still 0."""
        rms = product_rms(self.A, self.B)
        self.tau.copy_(torch.where(rms > 0, kappa * rms, self.tau))

    def extra_repr(self) -> str:
        """The line that print(model) shows."""
        (rank, in_features), out_features = self.A.shape, self.B.shape[0]
        return f"r={rank}, in={in_features}, out={out_features}, phi={self.phi}"


class LRLoraLayer(BaseTunerLayer):
    """Bookkeeping of the adapters on one layer, as PEFT asks for it."""

    adapter_layer_names = ("lrlora_delta",)
    other_param_names = ("r", "lora_alpha", "scaling", "lrlora_dropout")

    base_layer: nn.Linear

    def __init__(self, base_layer: nn.Linear) -> None:
        self.base_layer = base_layer
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.lrlora_dropout = nn.ModuleDict()
        self.lrlora_delta = nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._weight_before_merge: Tensor | None = None
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features

    def update_layer(self, adapter_name: str, rank: int, alpha: float, config: LRLoraConfig) -> None:
        """Add an adapter to this layer, or replace the one of the same name."""
        self.r[adapter_name], self.lora_alpha[adapter_name] = rank, alpha
        self.scaling[adapter_name] = config.scale_of(rank, alpha)
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()
        self.lrlora_dropout[adapter_name] = dropout
        self.lrlora_delta[adapter_name] = LRLoraDelta(self.in_features, self.out_features, rank, config)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def delta(self, adapter_name: str) -> LRLoraDelta:
        """The module that holds A, B, c and tau of an adapter."""
        module = self.lrlora_delta[adapter_name]
        assert isinstance(module, LRLoraDelta)
        return module

    def _base_weight(self) -> Tensor:
        weight = self.get_base_layer().weight
        assert isinstance(weight, Tensor)
        return weight

    def get_delta_weight(self, adapter: str) -> Tensor:
        """dW = s phi(B A) [out, in] of an adapter, float32."""
        return self.delta(adapter).delta_weight(self.scaling[adapter])

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """True: the update is added to the weight, so that PEFT's convert_to_lora can factorise it."""
        return True

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set s to `scale` times its value in the config's terms, alpha / r."""
        if adapter in self.scaling:
            self.scaling[adapter] = scale * self.lora_alpha[adapter] / self.r[adapter]

    def scale_layer(self, scale: float) -> None:
        """Multiply s of the active adapters."""
        for adapter in self.active_adapters:
            if adapter in self.scaling:
                self.scaling[adapter] *= scale

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT would cast the adapter to the base's dtype and later only the parameters back: tau would be rounded
        weight = getattr(self.get_base_layer(), "weight", None)
        target = device if device is not None else getattr(weight, "device", None)
        delta = self.delta(adapter_name)
        if target is not None and target.type != "meta" and delta.A.device.type != "meta":
            delta.to(target)


class Linear(nn.Module, LRLoraLayer):
    """An nn.Linear with LR-LoRA adapters."""

    def __init__(self, base_layer: nn.Linear, adapter_name: str, rank: int, alpha: float, config: LRLoraConfig) -> None:
        super().__init__()
        LRLoraLayer.__init__(self, base_layer)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, rank, alpha, config)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """y = x (W0 + sum of the active adapters' dW)^T + bias."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        active = [name for name in self.active_adapters if name in self.lrlora_delta]
        if self.disable_adapters or self.merged or not active:
            return self.base_layer(x, *args, **kwargs)
        if not args and not kwargs and self.why_not_combined(x) is None:
            weight, bias = self.base_layer.weight, self.base_layer.bias
            return self.delta(active[0])(x, weight, bias, self.scaling[active[0]])
        result = self.base_layer(x, *args, **kwargs)
        for name in active:
            share = self.delta(name)(self.lrlora_dropout[name](x), None, None, self.scaling[name])
            result = result + share.to(result.dtype)
        return result

    def why_not_combined(self, x: Tensor) -> str | None:
        """Why base(x) and x dW^T must stay two products; None where the one product x (W0 + dW)^T is right."""
        base = self.base_layer
        active = [name for name in self.active_adapters if name in self.lrlora_delta]
        if len(active) != 1:
            return f"{len(active)} adapters are active"
        if base.weight.dtype != torch.float32 or x.dtype != torch.float32:
            return f"W0 is {base.weight.dtype} and x {x.dtype}: small updates would be rounded away in W0 + dW"
        if torch.is_autocast_enabled(x.device.type):
            return "autocast would round W0 + dW"
        if self.training and not isinstance(self.lrlora_dropout[active[0]], nn.Identity):
            return "dropout acts on the input of the update alone"
        if base.weight.requires_grad:
            return "W0 is trained as well"
        if base._forward_hooks or base._forward_pre_hooks or hasattr(base, "_hf_hook"):
            return "the base layer has forward hooks"
        return None

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add dW of the adapters to the base weight; the weight as it was is kept aside for `unmerge`.

        The sum is made in float32 from the kept weight and all merged adapters, then cast, so that merging one adapter
        after another equals merging them at once.

        Args:
            safe_merge: refuse to touch the weight where the result would hold NaN or inf.
            adapter_names: which adapters; None means the active ones.

        Raises:
            ValueError: with safe_merge, where the merged weight is not finite.
        """
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.lrlora_delta]
        if not names:
            return
        weight = self._base_weight()
        original = weight.data if self._weight_before_merge is None else self._weight_before_merge.to(weight.device)
        total = original.float()
        for name in [*self.merged_adapters, *names]:
            total = total + self.get_delta_weight(name)
        if safe_merge and not torch.isfinite(total).all():
            raise ValueError(
                f"NaNs detected in the merged weights. The adapter {', '.join(names)} seems to be broken: "
                "its update holds NaN or inf"
            )
        for name in names:
            self.delta(name).drop_kept_weight()
        if self._weight_before_merge is None:
            self._weight_before_merge = weight.data.to("cpu", copy=True)
        weight.data = total.to(weight.dtype)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the base weight back, bit for bit as it was before `merge`."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        assert self._weight_before_merge is not None
        weight = self._base_weight()
        weight.data = self._weight_before_merge.to(weight.device)
        self._weight_before_merge = None
        self.merged_adapters.clear()

    def __repr__(self) -> str:
        return "lrlora." + super().__repr__()


def why_not_supported(target: nn.Module, parent: nn.Module) -> str | None:
    """Why a module cannot be adapted; None for a plain nn.Linear with a floating-point weight."""
    kind = f"{type(target).__module__}.{type(target).__qualname__}"
    if isinstance(parent, nn.MultiheadAttention):
        return f"it is a part of nn.MultiheadAttention, which reads its weight without calling it ({kind})"
    if not isinstance(target, nn.Linear) or type(target).forward is not nn.Linear.forward:
        return f"its type is {kind}; supported: torch.nn.Linear"
    if not target.weight.is_floating_point() or type(target.weight.data) is not torch.Tensor:
        return f"its weight is quantised ({kind} of {type(target.weight.data).__name__}, {target.weight.dtype})"
    return None


def refuse(name: str, target: nn.Module, reason: str) -> InputError:
    """The error for a module that cannot be adapted."""
    shape = f" ({target.out_features}x{target.in_features})" if isinstance(target, nn.Linear) else ""
    return InputError(
        f"LR-LoRA cannot adapt {name}{shape}: {reason}; take it out of target_modules or name it in exclude_modules"
    )
