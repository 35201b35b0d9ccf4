"""Exchanging a loaded adapter for a saved one, without wrapping the model anew: for servers of one base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from lrlora.errors import InputError
from lrlora.tuner.config import LRLoraConfig
from lrlora.tuner.delta import LRLoraDelta
from lrlora.tuner.layer import LRLoraLayer
from lrlora.tuner.model import LRLoraModel

_FILE = "adapter_model.safetensors"


def hotswap_adapter(model: PeftModel, adapter: str, adapter_name: str = "default") -> None:
    """Put a saved adapter in the place of a loaded one, without wrapping the model anew.

    Where both have the same r, K, phi and share, the values are copied into the tensors that are there, so that a
    model under torch.compile goes on without a new compilation unless its scale differs. Elsewhere a layer's adapter
    is made anew. A layer that the saved adapter does not adapt gets an update of 0. PEFT's own `hotswap_adapter` knows
    LoRA alone.

    Args:
        model: a PeftModel with LR-LoRA.
        adapter: a folder as `save_pretrained` writes it, or a name on the hub; only safetensors are read.
        adapter_name: the loaded adapter that gives way.

    Raises:
        InputError: no such adapter on the model, or it is merged; a saved adapter of another method, for other layers,
            or for another base. The model is as it was then.

    Example:
        lrlora.hotswap_adapter(model, "adapters/french")
    """
    tuner: Any = model.base_model
    if not isinstance(tuner, LRLoraModel) or adapter_name not in model.peft_config:
        there = ", ".join(model.peft_config)
        raise InputError(f"hotswap_adapter needs a loaded LR-LoRA adapter named {adapter_name!r}; there are: {there}")
    config = PeftConfig.from_pretrained(adapter)
    if not isinstance(config, LRLoraConfig):
        raise InputError(f"{adapter} is an adapter of type {config.peft_type}, needed LRLORA")
    state = load_file(Path(adapter) / _FILE if Path(adapter).is_dir() else hf_hub_download(adapter, _FILE))
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, LRLoraLayer) and adapter_name in layer.lrlora_delta
    }
    saved = _by_layer(state)
    _check(layers, saved, adapter, adapter_name)

    before: Any = model.peft_config[adapter_name]
    config.inference_mode = before.inference_mode
    model.peft_config[adapter_name] = config
    for name, layer in layers.items():
        tensors = saved.get(name)
        if tensors is None:
            with torch.no_grad():
                layer.delta(adapter_name).B.zero_()
            continue
        rank, alpha = tuner.rank_and_alpha(config, name.removeprefix("base_model.model."))
        if config.share == before.share and _is_alike(layer.delta(adapter_name), tensors, config):
            layer.set_alpha(adapter_name, rank, alpha, config)
            layer.delta(adapter_name).drop_kept_update()
        else:
            layer.update_layer(adapter_name, rank, alpha, config)
    set_peft_model_state_dict(model, state, adapter_name)


def _by_layer(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, is_of_adapter, field = key.rpartition(".lrlora_delta.")
        if is_of_adapter:
            found.setdefault(name, {})[field] = value
    return found


def _check(
    layers: dict[str, LRLoraLayer], saved: dict[str, dict[str, Tensor]], adapter: str, adapter_name: str
) -> None:
    merged = [name for name, layer in layers.items() if adapter_name in layer.merged_adapters]
    if merged:
        raise InputError(f"adapter {adapter_name!r} is merged into {merged[0]}; call unmerge_adapter() first")
    unknown = sorted(set(saved) - set(layers))
    if unknown:
        raise InputError(
            f"{adapter} adapts {len(unknown)} layers that adapter {adapter_name!r} does not ({unknown[0]}, ...); load "
            "it with model.load_adapter instead, or begin with an adapter that has all layers"
        )
    for name, tensors in saved.items():
        layer = layers[name]
        got = (tensors["B"].shape[-2], tensors["A"].shape[-1])
        if got != (layer.out_features, layer.in_features):
            raise InputError(
                f"{adapter} does not fit this base model: its update of {name} is {got[0]}x{got[1]}, needed "
                f"{layer.out_features}x{layer.in_features}"
            )


def _is_alike(delta: LRLoraDelta, tensors: dict[str, Tensor], config: LRLoraConfig) -> bool:
    held = {name: tensor.shape for name, tensor in delta.state_dict().items()}
    return delta.phi == config.phi and held == {name: tensor.shape for name, tensor in tensors.items()}
