"""Adapted layers as plain LoRA sees them: those of LR-LoRA, and those of PEFT's own LoRA, to be cut to other ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lrlora.errors import InputError
from lrlora.export.lora.factor import Decomposition, decompose, decompose_product
from lrlora.export.skeleton import ADAPTER, Skeleton
from lrlora.saved.adapter import AdapterFolder
from lrlora.saved.updates import adapter_weights
from lrlora.tuner.attention import MultiheadAttention

METHODS = ("LRLORA", "LORA")
"""Methods of PEFT, by its names, whose adapters can be written as plain LoRA of other ranks."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_HELD = (nn.Linear, Conv1D, nn.Embedding, *CONVOLUTIONS)
_EXPERTS = "parameters chosen by target_parameters (experts)"
# seen in 0.21.2, reported to PEFT: its forward pass and its merge compute with out_proj + 2 B A
_ATTENTION = "the weights of nn.MultiheadAttention, of which peft's LoRA adds that of out_proj twice,"
# the other ways to start change the base's weights, and so what the adapter is an update of
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


class AnyLayer(Protocol):
    """What is read of an adapted layer: `lrlora.export.skeleton.AdaptedLayer` and `LoraLayer` have it."""

    @property
    def name(self) -> str:
        """Of the module."""
        ...

    @property
    def layer(self) -> Any:
        """The adapted module."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of dW."""
        ...

    def matrix(self) -> Tensor:
        """dW [out, in], float32."""
        ...


@dataclass(frozen=True)
class LoraLayer:
    """One layer of PEFT's own LoRA.

    Args:
        name: of the module.
        layer: the adapted module.
        A: [r, in], float32.
        B: [out, r], float32, times the scale: dW is B A.
    """

    name: str
    layer: Any
    A: Tensor
    B: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of dW."""
        return self.B.shape[0], self.A.shape[1]

    def matrix(self) -> Tensor:
        """dW [out, in], float32."""
        return self.B @ self.A


def layers_of(built: Skeleton, saved: AdapterFolder) -> list[AnyLayer]:
    """Every adapted layer, in the order of the model.

    Raises:
        InputError: one that plain LoRA of PEFT has no form for, or that holds NaN or inf, by name.
    """
    is_lora = saved.method == "LORA"
    layers: Sequence[AnyLayer] = _lora_layers(built, saved) if is_lora else built.layers()
    for layer in layers:
        if reason := _why_not_plain(layer):
            instead = "peft's merge_and_unload" if is_lora else "`lrlora merge`"
            raise InputError(f"cannot export {layer.name}: {reason} have no plain LoRA form here; use {instead}")
    return list(layers)


def _lora_layers(built: Skeleton, saved: AdapterFolder) -> list[LoraLayer]:
    # from the file: on a base without weights PEFT moves its factors to where there are none
    tensors, found = load_file(adapter_weights(saved.folder)), []
    for path, module in built.model.named_modules():
        if f"{path}.lora_A.weight" in tensors:
            A, B = (tensors[f"{path}.lora_{which}.weight"].flatten(1).float() for which in "AB")
        elif f"{path}.lora_embedding_A" in tensors:
            # the rows of an embedding are inputs to PEFT: its update is (B A)^T
            B, A = (tensors[f"{path}.lora_embedding_{which}"].T.float() for which in "AB")
        else:
            continue
        name = path.removeprefix("base_model.model.")
        if not (torch.isfinite(A).all() and torch.isfinite(B).all()):
            raise InputError(f"the update of {name} holds NaN or inf: this adapter is broken; train it again")
        found.append(LoraLayer(name, module, A, B * module.scaling[ADAPTER]))
    return found


def _why_not_plain(layer: AnyLayer) -> str | None:
    """What a layer is, in words, if plain LoRA cannot hold it."""
    module, adapted = layer.layer.get_base_layer(), layer.layer
    # lrlora's wrapper of experts has the name of PEFT's
    if type(adapted).__name__ == "ParamWrapper":
        return _EXPERTS
    if isinstance(adapted, MultiheadAttention):
        return _ATTENTION
    if isinstance(module, CONVOLUTIONS) and module.groups > 1:
        return f"convolutions with groups={module.groups}"
    if not isinstance(layer, LoraLayer):
        return None
    if variant := getattr(adapted, "lora_variant", {}).get(ADAPTER):
        return f"layers of {type(variant).__name__}, a variant of LoRA,"
    if getattr(adapted, "lora_bias", {}).get(ADAPTER):
        return "layers with lora_bias"
    return None if isinstance(module, _HELD) else f"layers of type {type(module).__name__}"


def decomposition(layer: AnyLayer) -> Decomposition:
    """The singular value decomposition of a layer's dW, to be cut at any rank."""
    return decompose_product(layer.B, layer.A) if isinstance(layer, LoraLayer) else decompose(layer.matrix())


def refuse_what_changes_the_base(saved: AdapterFolder) -> None:
    """Refuse a LoRA whose initialisation changed the weights of the base: it is an update of others than the base's.

    Raises:
        InputError: naming the initialisation.
    """
    start = saved.config.get("init_lora_weights", True) if saved.method == "LORA" else True
    if start not in _STARTS:
        raise InputError(
            f"{saved.folder} was trained with init_lora_weights={start!r}, which changes the weights of the base: cut "
            "to other ranks it would be added to other weights; save it with peft's "
            "save_pretrained(path_initial_model_for_weight_conversion=...) and export that"
        )
