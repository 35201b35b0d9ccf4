"""Replace a loaded adapter by a saved one without wrapping the model again: for servers of one base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lrlora.errors import InputError
from lrlora.tuner.config import LRLoraConfig
from lrlora.tuner.delta import MARK, LRLoraDelta
from lrlora.tuner.experts import ParamWrapper
from lrlora.tuner.internals import WEIGHTS
from lrlora.tuner.layer import LRLoraLayer
from lrlora.tuner.model import LRLoraModel

_OF_A_LAYER = ("phi", "share", "carrier", "carrier_offset", "carrier_start", "config_version")
"""Fields of the configuration that a layer keeps besides tensors: where one differs, the layer is created again."""


def hotswap_adapter(model: PeftModel, adapter: str, adapter_name: str = "default") -> None:
    """Replace a loaded adapter by a saved one, without wrapping the model again.

    Where both have the same r, K, phi, share and carrier, the values are copied into the existing tensors. A model
    under torch.compile then needs no new compilation unless its scale differs. Elsewhere a layer's adapter is created
    again, or removed where the saved one has none. Heads, biases and token vectors that both train are replaced as
    well. PEFT's own `hotswap_adapter` takes LoRA only.

    Args:
        model: a PeftModel with LR-LoRA.
        adapter: a folder as `save_pretrained` writes it, or a name on the hub; only safetensors are read.
        adapter_name: the loaded adapter that is replaced.

    Raises:
        InputError: no such adapter on the model, or it is merged; a saved adapter of another method, for other layers,
            for another base, that trains other heads, biases or tokens, or whose file is damaged, not whole, or holds
            NaN. The model is as it was then.

    Example:
        lrlora.hotswap_adapter(model, "adapters/french")
    """
    tuner: Any = model.base_model
    if not isinstance(tuner, LRLoraModel) or adapter_name not in model.peft_config:
        there = ", ".join(model.peft_config)
        raise InputError(f"hotswap_adapter needs a loaded LR-LoRA adapter named {adapter_name!r}; there are: {there}")
    config, state = _read(adapter)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LRLoraLayer)}
    saved = _by_layer(state, config)
    _check_layers(tuner, layers, saved, config, adapter, adapter_name)
    _check_rest(model, config, state, adapter, adapter_name)

    # from here on nothing is refused
    before: Any = model.peft_config[adapter_name]
    config.inference_mode = before.inference_mode
    model.peft_config[adapter_name] = config
    was_trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    is_trained = any(
        layer.delta(adapter_name).A.requires_grad for layer in layers.values() if _has(layer, adapter_name)
    )
    for name, layer in layers.items():
        tensors = saved.get(name)
        if tensors is None:
            layer.take_out(adapter_name)
            continue
        rank, alpha = tuner.rank_and_alpha(config, _in_base(name))
        if (
            _has(layer, adapter_name)
            and all(getattr(config, field) == getattr(before, field) for field in _OF_A_LAYER)
            and _is_alike(layer, adapter_name, tensors)
        ):
            layer.configure(adapter_name, rank, alpha, config)
        else:
            _make_anew(layer, adapter_name, rank, alpha, config, _in_base(name))
            layer.delta(adapter_name).requires_grad_(is_trained)
    for parameter, is_wanted in was_trained.items():
        parameter.requires_grad_(is_wanted)
    tuner.tie_coefficients(tuner.model, adapter_name)
    set_peft_model_state_dict(model, state, adapter_name)


def _read(adapter: str) -> tuple[LRLoraConfig, dict[str, Tensor]]:
    """Configuration and tensors of a saved adapter."""
    folder = Path(adapter)
    try:
        config = PeftConfig.from_pretrained(adapter)
        if not isinstance(config, LRLoraConfig):
            raise InputError(f"{adapter} is an adapter of type {config.peft_type}, needed LRLORA")
        state = load_file(folder / WEIGHTS if folder.is_dir() else hf_hub_download(adapter, WEIGHTS))
    except (FileNotFoundError, SafetensorError) as error:
        raise InputError(f"{adapter} holds no whole {WEIGHTS} ({error}); copy or save it again") from error
    return config, state


def _by_layer(state: dict[str, Tensor], config: LRLoraConfig) -> dict[str, dict[str, Tensor]]:
    """The tensors of every layer, under the names that they have in the model."""
    of_file = {"c": "theta"} if config.config_version == 1 else {}
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, is_of_adapter, field = key.rpartition(MARK)
        if is_of_adapter:
            found.setdefault(name, {})[of_file.get(field, field)] = value
    return found


def _check_layers(
    tuner: LRLoraModel,
    layers: dict[str, LRLoraLayer],
    saved: dict[str, dict[str, Tensor]],
    config: LRLoraConfig,
    adapter: str,
    adapter_name: str,
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
    for name, layer in layers.items():
        is_meant = tuner._check_target_module_exists(config, _in_base(name))
        if name in saved:
            _check_shapes(tuner, name, layer, saved[name], config, adapter)
        elif is_meant and not isinstance(layer, ParamWrapper):
            raise InputError(
                f"{adapter} is not whole: it adapts {name}, but its file holds nothing of it; copy it again"
            )


def _check_shapes(
    tuner: LRLoraModel,
    name: str,
    layer: LRLoraLayer,
    tensors: dict[str, Tensor],
    config: LRLoraConfig,
    adapter: str,
) -> None:
    rank, _ = tuner.rank_and_alpha(config, _in_base(name))
    with torch.device("meta"):
        made = LRLoraDelta(layer.in_features, layer.out_features, rank, config, layer.experts)
    needed = {field: tuple(value.shape) for field, value in made.state_dict().items()}
    got = {field: tuple(value.shape) for field, value in tensors.items()}
    if set(got) != set(needed):
        raise InputError(f"{adapter} is not whole: of {name} it holds {sorted(got)}, needed {sorted(needed)}")
    update = (got["B"][-2], got["A"][-1])
    if update != (layer.out_features, layer.in_features):
        raise InputError(
            f"{adapter} does not fit this base model: its update of {name} is {update[0]}x{update[1]}, needed "
            f"{layer.out_features}x{layer.in_features}"
        )
    wrong = [field for field in needed if got[field] != needed[field]]
    if wrong:
        raise InputError(
            f"{adapter} contradicts its own configuration: {name}.{wrong[0]} is {got[wrong[0]]}, needed "
            f"{needed[wrong[0]]}"
        )


_TRAINED_BESIDE = ("modules_to_save", "bias", "trainable_token_indices", "target_parameters")


def _check_rest(
    model: PeftModel, config: LRLoraConfig, state: dict[str, Tensor], adapter: str, adapter_name: str
) -> None:
    """Refuse if trained tensors of the loaded adapter would remain, or if saved ones have no place or hold NaN."""
    for field in _TRAINED_BESIDE:
        held, wanted = (_plain(getattr(c, field)) for c in (model.peft_config[adapter_name], config))
        if held != wanted:
            raise InputError(
                f"{adapter} has {field}={wanted!r}, and adapter {adapter_name!r} {held!r}; load it with "
                "model.load_adapter instead, or begin with an adapter that has the same"
            )
    others = {key: value for key, value in state.items() if MARK not in key}
    everything = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    trained = {key: value for key, value in everything.items() if MARK not in key}
    # the base's own embeddings, which PEFT saves with an adapter of them, must equal those of the model
    base = model.state_dict() if others.keys() - trained.keys() else {}
    for key in sorted(others.keys() | trained.keys()):
        value, held = others.get(key), trained.get(key, base.get(key))
        is_fit = value is not None and held is not None and value.shape == held.shape
        if is_fit and key not in trained:
            assert value is not None and held is not None
            is_fit = torch.equal(value, held.to(value))
        if not is_fit:
            raise InputError(
                f"{adapter} and adapter {adapter_name!r} do not train the same besides LR-LoRA: {key} is "
                f"{_shape(value)} in the file and {_shape(held)} in the model; load it with model.load_adapter instead"
            )
    broken = [key for key, value in state.items() if not key.endswith(f"{MARK}tau") and not value.isfinite().all()]
    broken += [key for key, value in state.items() if key.endswith(f"{MARK}tau") and not (value > 0).all()]
    if broken:
        raise InputError(
            f"{adapter} is broken: {broken[0]} holds NaN, inf or, for tau, no number above 0; train it again"
        )


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, list | set | tuple) else (value or None)


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else str(tuple(tensor.shape))


def _in_base(name: str) -> str:
    return name.removeprefix("base_model.model.")


def _has(layer: LRLoraLayer, adapter_name: str) -> bool:
    return adapter_name in layer.lrlora_delta


def _is_alike(layer: LRLoraLayer, adapter_name: str, tensors: dict[str, Tensor]) -> bool:
    if not _has(layer, adapter_name):
        return False
    delta = layer.delta(adapter_name)
    held = {name: tensor.shape for name, tensor in delta.state_dict().items()}
    return held == {name: tensor.shape for name, tensor in tensors.items()}


def _make_anew(layer: LRLoraLayer, adapter_name: str, rank: int, alpha: float, config: LRLoraConfig, name: str) -> None:
    old = layer.delta(adapter_name) if _has(layer, adapter_name) else None
    layer.update_layer(adapter_name, rank, alpha, config, name)
    if old is not None and old.is_in_base_precision:
        layer.delta(adapter_name).use_precision_of_base(old.A.dtype)
