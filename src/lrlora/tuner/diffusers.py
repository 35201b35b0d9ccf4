"""Load what diffusers saved: it writes adapters of every method with their configuration, and reads LoRA's only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lrlora.errors import InputError
from lrlora.tuner.config import LRLoraConfig

WEIGHT_NAME = "pytorch_lora_weights.safetensors"
"""The name that diffusers gives such a file."""
_CONFIG = "lora_adapter_metadata"
"""Where diffusers keeps the configuration in a file."""


def load_lora_adapter(
    model: Any,
    path: str | Path,
    adapter_name: str = "default",
    prefix: str | None = None,
    weight_name: str = WEIGHT_NAME,
    config: LRLoraConfig | None = None,
) -> None:
    """Put an LR-LoRA adapter that diffusers saved on a model, and activate it alone, trainable as by `add_adapter`.

    The counterpart of `model.save_lora_adapter(folder)`, and of a pipeline's `save_lora_weights(folder, ...)` where
    that was given the configuration: `unet_lora_adapter_metadata=unet.peft_config["default"].to_dict()`. diffusers' own
    `load_lora_adapter` and `load_lora_weights` fail on such a file: they know LoRA and LoKr.

    Args:
        model: of diffusers, such as a UNet or a transformer; or a text encoder of transformers.
        path: folder, or the file itself.
        adapter_name: which name it gets; must be free.
        prefix: component of a pipeline whose adapter is taken ("unet", "transformer", "text_encoder"); None for a file
            of `save_lora_adapter`.
        weight_name: of the file in the folder.
        config: for a file that holds no configuration; None: that of the file.

    Raises:
        InputError: no such file, no adapter of this prefix or no configuration in it, one of another method, a name in
            use, or tensors that do not fit the model. The model is as it was then.

    Example:
        pipe.unet.save_lora_adapter("adapter")
        load_lora_adapter(other_pipe.unet, "adapter")
    """
    file = Path(path) / weight_name if Path(path).is_dir() else Path(path)
    tensors, fields = _read(file, prefix)
    if config is None:
        config = _config(file, fields)
    if adapter_name in getattr(model, "peft_config", {}):
        raise InputError(f"the model has an adapter named {adapter_name!r} already; pass another adapter_name")
    before = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
    model.add_adapter(config, adapter_name=adapter_name)
    try:
        _check_names(file, set(get_peft_model_state_dict(model, adapter_name=adapter_name)), set(tensors))
        set_peft_model_state_dict(model, tensors, adapter_name)
    except InputError:
        (getattr(model, "delete_adapters", None) or model.delete_adapter)(adapter_name)
        for parameter in model.parameters():
            parameter.requires_grad_(before.get(id(parameter), parameter.requires_grad))
        raise


def _read(file: Path, prefix: str | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a component, and the fields of its configuration."""
    try:
        with safe_open(file, framework="pt") as opened:
            fields = json.loads((opened.metadata() or {}).get(_CONFIG, "{}"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is no whole file of safetensors ({error}); save it again with diffusers") from error
    start = "" if prefix is None else f"{prefix}."
    of_component = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
    if not of_component:
        there = ", ".join(sorted({name.split(".")[0] for name in tensors}))
        raise InputError(f"{file} holds nothing of {prefix!r}; pass one of these as prefix, or None: {there}")
    return of_component, {name.removeprefix(start): value for name, value in fields.items() if name.startswith(start)}


def _config(file: Path, fields: dict[str, Any]) -> LRLoraConfig:
    if "peft_type" not in fields:
        raise InputError(
            f"{file} holds no configuration for this prefix; save it with model.save_lora_adapter, or give "
            "save_lora_weights unet_lora_adapter_metadata=unet.peft_config['default'].to_dict(); a file that cannot be "
            "saved again loads with config=LRLoraConfig(...) as it was trained"
        )
    if fields["peft_type"] != "LRLORA":
        raise InputError(f"{file} is an adapter of type {fields['peft_type']}, not LRLORA; load it with diffusers")
    config = PeftConfig.from_peft_type(**{**fields, "inference_mode": False})
    assert isinstance(config, LRLoraConfig)
    return config


def _check_names(file: Path, needed: set[str], got: set[str]) -> None:
    if needed == got:
        return
    missing, surplus = sorted(needed - got), sorted(got - needed)
    said = [f"it lacks {len(missing)} tensors ({missing[0]}, ...)"] if missing else []
    said += [f"the model has no place for {len(surplus)} of its tensors ({surplus[0]}, ...)"] if surplus else []
    raise InputError(
        f"{file} does not fit this model and configuration: {' and '.join(said)}; load it on the model that it was "
        "trained on, with the prefix of that component"
    )
