"""Adapters on parameters that no linear layer holds: the 3-D weights of experts, through `target_parameters`.

A module of experts multiplies with its parameters itself, so an adapter cannot add its update to the product. While the
module runs, W0 + dW replaces the parameter; the parameter itself is not changed. That costs one more tensor of the size
of the parameter, kept until the backward pass unless gradient checkpointing is on.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lrlora.errors import InputError
from lrlora.internals import own_parameters
from lrlora.tuner.config import LRLoraConfig
from lrlora.tuner.delta import LRLoraDelta
from lrlora.tuner.layer import LRLoraLayer


class Turns:
    """A lock; a copy or a file of the model gets a new one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        return Turns, ()


class ParamWrapper(nn.Module, LRLoraLayer):
    """A module one of whose parameters, [out, in] or [experts, out, in], is adapted.

    Two parameters of one module make two wrappers, one inside the other. PEFT knows them by the name of this class.
    """

    is_weight_replaced = True

    def __init__(self, base_layer: nn.Module, parameter_name: str) -> None:
        super().__init__()
        self.parameter_name = parameter_name
        module: Any = base_layer.get_base_layer() if isinstance(base_layer, ParamWrapper) else base_layer
        shape = getattr(module, parameter_name).shape
        # some models keep [experts, in, out], and say so
        self.is_transposed = len(shape) == 3 and bool(getattr(module, "is_transposed", False))
        self.experts = shape[0] if len(shape) == 3 else None
        out_features, in_features = (shape[-1], shape[-2]) if self.is_transposed else shape[-2:]
        LRLoraLayer.__init__(self, base_layer, out_features, in_features)
        self._turns = Turns()

    def update_layer(self, adapter_name: str, rank: int, alpha: float, config: LRLoraConfig, name: str = "") -> None:
        """Add an adapter to this parameter, or replace the one of the same name."""
        if config.lora_dropout > 0:
            raise InputError(
                "lora_dropout acts on the input of an update, which a parameter such as "
                f"{self.parameter_name} does not have; got lora_dropout={config.lora_dropout}, pass 0 or leave "
                "target_parameters out"
            )
        super().update_layer(adapter_name, rank, alpha, config, f"{name}.{self.parameter_name}")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module, computed with W0 + dW of the active adapters."""
        if kwargs.pop("adapter_names", None) is not None:
            raise InputError(
                "lrlora.ParamWrapper does not support mixed adapter batches yet: the experts read one weight for all "
                "rows; give each adapter a batch of its own, or leave adapter_names out"
            )
        if self.disable_adapters and self.merged:
            self.unmerge()
        active = self.active_here()
        # all threads read one attribute of the module, so they take turns, those without an adapter as well
        with contextlib.nullcontext() if torch.compiler.is_compiling() else self._turns.lock:
            if self.disable_adapters or self.merged or not active:
                return self.base_layer(*args, **kwargs)
            with adapted_parameter(self, active):
                return self.base_layer(*args, **kwargs)

    def to_layout(self, matrix: Tensor) -> Tensor:
        """Between the parameter's layout and [experts, out, in]: transposed for [experts, in, out]."""
        return matrix.mT if self.is_transposed else matrix

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The module itself, with the adapters of all its parameters merged if asked for."""
        if merge:
            wrapper: Any = self
            while isinstance(wrapper, ParamWrapper):
                wrapper.merge(safe_merge=safe_merge, adapter_names=adapter_names)
                wrapper = wrapper.base_layer
        return self.get_base_layer()

    def extra_repr(self) -> str:
        """Names the parameter."""
        return f"parameter_name={self.parameter_name!r}"

    def __repr__(self) -> str:
        return "lrlora." + super().__repr__()


@contextlib.contextmanager
def adapted_parameter(layer: LRLoraLayer, active: list[str]) -> Iterator[None]:
    """While open, the base module of a layer has W0 + dW of these adapters, at least one, in the parameter's place."""
    module = layer.get_base_layer()
    parameter = getattr(module, layer.parameter_name)
    first, *others = active
    weight = layer.made(first, LRLoraDelta.adapted_weight, layer.to_layout(parameter.detach()))
    for name in others:
        weight = weight + layer.made(name, LRLoraDelta.update).to(weight.dtype)
    # an attribute of the object hides the parameter of the same name, which stays registered as it is
    module.__dict__[layer.parameter_name] = layer.to_layout(weight)
    try:
        yield
    finally:
        del module.__dict__[layer.parameter_name]


def wrap_parameter(name: str, target: nn.Module, parameter_name: str) -> ParamWrapper:
    """A module with one of its parameters wrapped, before an adapter is added.

    Raises:
        InputError: a parameter that cannot be adapted, named, with the reason.
    """
    module: Any = target.get_base_layer() if isinstance(target, ParamWrapper) else target
    reason = why_not_adaptable(module, parameter_name)
    if reason is not None:
        raise InputError(f"LR-LoRA cannot adapt the parameter {name}: {reason}; take it out of target_parameters")
    warn_of_rounding(parameter_name, getattr(module, parameter_name).dtype)
    return ParamWrapper(target, parameter_name)


def warn_of_rounding(parameter_name: str, dtype: torch.dtype) -> None:
    """Warn where W0 + dW takes the place of a parameter in half precision."""
    if dtype in (torch.float16, torch.bfloat16):
        warnings.warn(
            f"W0 + dW of {parameter_name} is rounded to {dtype}, in which small updates are lost; load the base in "
            "float32 (and train under autocast) to keep them",
            stacklevel=3,
        )


def why_not_adaptable(module: nn.Module, parameter_name: str) -> str | None:
    """Why a parameter of a module cannot be adapted; None where it can."""
    parameters = own_parameters(module)
    if parameter_name not in parameters:
        return "it is computed by a parametrization of the module, or is no parameter of it"
    parameter = parameters[parameter_name]
    if parameter is None or parameter.ndim not in (2, 3):
        shape = None if parameter is None else tuple(parameter.shape)
        return f"its shape is {shape}, needed [out, in] or [experts, out, in]"
    if not parameter.is_floating_point() or type(parameter.data) is not Tensor or parameter.element_size() == 1:
        return f"its weight is quantised ({type(parameter.data).__name__}, {parameter.dtype})"
    return None
