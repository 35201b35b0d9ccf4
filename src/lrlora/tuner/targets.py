"""Which module becomes which adapted layer, the messages for those that cannot, and what "all-linear" leaves out."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lrlora.errors import InputError
from lrlora.tuner.attention import MultiheadAttention, why_not_as_one, why_not_with
from lrlora.tuner.config import LRLoraConfig
from lrlora.tuner.internals import include_all_linear, is_all_linear, resolve_quantization
from lrlora.tuner.layer import LRLoraLayer
from lrlora.tuner.types import Conv, Embedding, Linear

# dt_proj on every path, the others where the kernels of mamba-ssm are installed
_READ_BY_MAMBA = ("dt_proj", "x_proj", "out_proj", "conv1d")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Adapted = Linear | Embedding | Conv | MultiheadAttention
SUPPORTED = (
    "torch.nn.Linear, Embedding, Conv1d, Conv2d, Conv3d and MultiheadAttention, transformers' Conv1D, and quantised "
    "linear layers"
)


def wrap(name: str, target: nn.Module, parent: nn.Module, model: nn.Module) -> Adapted:
    """The adapted layer that replaces a module, before an adapter is added.

    Raises:
        InputError: a module that cannot be adapted, named, with the reason.
    """
    quantization = resolve_quantization(target, model)
    reason = why_not_called(name, parent) or why_not_supported(target, quantization)
    if reason is not None:
        shape = f" ({target.out_features}x{target.in_features})" if isinstance(target, nn.Linear) else ""
        raise InputError(
            f"LR-LoRA cannot adapt {name}{shape}: {reason}; take it out of target_modules or name it in exclude_modules"
        )
    layer: Adapted
    if isinstance(target, nn.Embedding):
        layer = Embedding(target)
    elif isinstance(target, nn.MultiheadAttention):
        layer = MultiheadAttention(target)
    else:
        layer = Conv(target) if isinstance(target, _CONVOLUTIONS) else Linear(target, quantization)
    if isinstance(parent, nn.TransformerEncoderLayer):
        # in evaluation it hands the base weights of its layers to one kernel, unless a layer has hooks
        layer.register_forward_pre_hook(_keep_the_call)
    return layer


def _keep_the_call(module: nn.Module, args: Any) -> None:
    pass


def name_all_linear(config: LRLoraConfig, model: nn.Module, is_meant: Callable[[Any, str], Any]) -> None:
    """Put the names of the layers that "all-linear" means into a config, without those that cannot be adapted.

    These are PEFT's, but for the projections of an nn.MultiheadAttention: the attention is adapted, as a whole.

    Args:
        config: changed where its target_modules is "all-linear".
        model: the base model.
        is_meant: whether a config, by all its fields, means the module of a name.

    Raises:
        InputError: no linear layer of the model can be adapted.
    """
    if not is_all_linear(config):
        return
    include_all_linear(config, model)
    listed = set(config.target_modules or ())
    modules = dict(model.named_modules())
    names = {name for name, module in modules.items() if name in listed or isinstance(module, MultiheadAttention)}
    config.target_modules = list(names)
    kept, reasons = set(), {}
    for name in sorted(name for name in names if is_meant(config, name)):
        parent = modules[name.rpartition(".")[0]]
        if isinstance(parent, nn.MultiheadAttention):
            name = name.rpartition(".")[0]
            config.target_modules = [name]
            if not is_meant(config, name):
                continue
            parent = modules[name.rpartition(".")[0]]
        reason = _why_not_adapted(name, modules[name], parent, model, config)
        if reason is None:
            kept.add(name)
        else:
            reasons[name] = reason
    if reasons and not kept:
        raise InputError(f"LR-LoRA can adapt none of the linear layers of this model: {_listed(reasons)}")
    if reasons:
        warnings.warn(f'"all-linear" leaves out what LR-LoRA cannot adapt: {_listed(reasons)}', stacklevel=2)
    config.target_modules = kept  # pyright: ignore[reportAttributeAccessIssue]
    if any(is_meant(config, name) for name in reasons):
        # PEFT takes a name for the end of longer ones as well
        config.target_modules = "|".join(re.escape(name) for name in sorted(kept))


def _why_not_adapted(
    name: str, module: nn.Module, parent: nn.Module, model: nn.Module, config: LRLoraConfig
) -> str | None:
    if isinstance(module, nn.MultiheadAttention | MultiheadAttention) and why_not_with(config) is not None:
        return why_not_with(config)
    if isinstance(module, LRLoraLayer):
        return None
    return why_not_called(name, parent) or why_not_supported(module, resolve_quantization(module, model))


def _listed(reasons: dict[str, str]) -> str:
    """Names by reason; those that differ in their numbers only, as one with their count."""
    by_reason: dict[str, dict[str, list[str]]] = {}
    for name, reason in reasons.items():
        alike = re.sub(r"(^|(?<=\.))\d+(?=\.|$)", "*", name)
        by_reason.setdefault(reason, {}).setdefault(alike, []).append(name)
    return "; ".join(
        ", ".join(names[0] if len(names) == 1 else f"{alike} ({len(names)} layers)" for alike, names in found.items())
        + f": {reason}"
        for reason, found in by_reason.items()
    )


def why_not_called(name: str, parent: nn.Module) -> str | None:
    """Why an adapter on this module would do nothing: its parent reads its weight instead of calling it."""
    own_name = name.split(".")[-1]
    if isinstance(parent, nn.MultiheadAttention):
        attention = name.rpartition(".")[0]
        return (
            "it is a part of nn.MultiheadAttention, which reads its weight without calling it; name the whole "
            f"attention{f' ({attention})' if attention else ''} in target_modules to adapt its projections"
        )
    if "mamba" in type(parent).__name__.lower() and own_name in _READ_BY_MAMBA:
        return f"{type(parent).__name__} hands its weight to a fused kernel without calling it; in_proj can be adapted"
    return None


def why_not_supported(target: nn.Module, quantization: Any = None) -> str | None:
    """Why a module cannot be adapted; None where it can."""
    kind = f"{type(target).__module__}.{type(target).__qualname__}"
    if isinstance(target, nn.MultiheadAttention):
        return why_not_as_one(target)
    if quantization is not None:
        has_shape = hasattr(target, "in_features") and hasattr(target, "out_features")
        return None if has_shape else f"its quantised type {kind} does not tell its shape"
    if isinstance(target, nn.Embedding):
        if target.max_norm is not None:
            return "its max_norm rescales rows of the weight while they are looked up"
        is_known = type(target).forward is nn.Embedding.forward or hasattr(target, "embed_scale")
        return None if is_known else f"its type {kind} looks rows up in a way of its own"
    if isinstance(target, Conv1D):
        return None
    plain = next((t for t in (nn.Linear, *_CONVOLUTIONS) if isinstance(target, t)), None)
    if plain is None or type(target).forward is not plain.forward:
        return f"its type is {kind}; supported: {SUPPORTED}"
    weight: Any = target.weight
    if not weight.is_floating_point() or type(weight.data) is not Tensor:
        return f"its weight is quantised ({kind} of {type(weight.data).__name__}, {weight.dtype})"
    return None
