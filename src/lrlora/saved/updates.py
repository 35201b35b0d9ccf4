"""The updates of a saved adapter, read from its file: A, B, c and tau are enough, no base model is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lrlora.errors import InputError
from lrlora.files import read_json
from lrlora.ranks.measure import Update, updates_of
from lrlora.saved.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from lrlora.tuner.config import LRLoraConfig
from lrlora.tuner.delta import MARK, LRLoraDelta
from lrlora.tuner.model import LRLoraModel


def adapter_settings(folder: Path) -> dict[str, Any]:
    """adapter_config.json of an adapter folder.

    Raises:
        InputError: it is missing, or not a JSON object.
    """
    described = folder / ADAPTER_CONFIG
    if not described.is_file():
        raise InputError(f"no adapter in {folder}: {described.name} is missing")
    saved = read_json(described, "copy the adapter again")
    if not isinstance(saved, dict):
        raise InputError(f"{described} is no JSON object of fields but {type(saved).__name__}; copy the adapter again")
    return saved


def order_config(folder: Path) -> None:
    """Write the names of modules in adapter_config.json in order: PEFT writes them as a set has them in its process."""
    file = folder / ADAPTER_CONFIG
    fields = json.loads(file.read_text(encoding="utf-8"))
    for name in ("target_modules", "exclude_modules"):
        if isinstance(fields.get(name), list):
            fields[name] = sorted(fields[name])
    file.write_text(json.dumps(fields, indent=2, sort_keys=True), encoding="utf-8")


def adapter_weights(folder: Path) -> Path:
    """adapter_model.safetensors of an adapter folder.

    Raises:
        InputError: it is missing; where the weights are pickled, how to convert them.
    """
    file, pickled = folder / ADAPTER_WEIGHTS, folder / "adapter_model.bin"
    if file.is_file():
        return file
    if pickled.is_file():
        raise InputError(
            f"{pickled} is a pickle, which can run any code; lrlora reads only {file.name}; convert it: python -c "
            f'"import torch, safetensors.torch as s; '
            f's.save_file(torch.load({str(pickled)!r}, weights_only=True), {str(file)!r})"'
        )
    raise InputError(f"no adapter file {file}")


def stored_config(folder: Path) -> Any:
    """The LRLoraConfig of an adapter folder.

    Raises:
        InputError: no adapter there, or one of another method.
    """
    saved = adapter_settings(folder)
    if saved.get("peft_type") != "LRLORA":
        raise InputError(f"{folder} is an adapter of type {saved.get('peft_type')}, not LRLORA")
    try:
        return LRLoraConfig.from_pretrained(str(folder))
    except (TypeError, AttributeError) as error:
        raise InputError(f"{folder}/adapter_config.json has a field of a wrong kind: {error}") from error


def stored_updates(folder: Path) -> list[Update]:
    """The update of every layer of a saved adapter, and of every expert of a stack, by name.

    Args:
        folder: an adapter folder as PEFT saves it.

    Raises:
        InputError: no adapter there, one of another method, or a file cut short.

    Example:
        rows = [measure(update, None) for update in stored_updates(Path("runs/demo/adapter"))]
    """
    config = stored_config(folder)
    file = adapter_weights(folder)
    try:
        tensors = load_file(file)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{file} is not a whole safetensors file ({error}); copy or train it again") from error
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, mark, part = key.rpartition(MARK)
        if mark:
            parts.setdefault(name.removeprefix("base_model.model."), {})[part] = tensor
    if not parts:
        raise InputError(f"{file} holds no LR-LoRA layer; train it again")
    found = []
    for name, of_layer in parts.items():
        rank, alpha = LRLoraModel.rank_and_alpha(config, name)
        delta = _delta_of(config, name, rank, of_layer, file)
        found += updates_of(name.replace(".base_layer", ""), delta, config.scale_of(rank, alpha) * delta.gain)
    return found


def _delta_of(config: Any, name: str, rank: int, tensors: dict[str, torch.Tensor], file: Path) -> LRLoraDelta:
    """A, B, theta and tau of one layer of a file, as training held them."""
    held = {"theta" if field == "c" and config.config_version == 1 else field: t for field, t in tensors.items()}
    missing = {"A", "B", "tau"} - held.keys()
    if missing:
        raise InputError(f"{file} holds no {', '.join(sorted(missing))} of {name}; copy or train it again")
    A, B = held["A"], held["B"]
    with torch.device("meta"):
        delta = LRLoraDelta(A.shape[-1], B.shape[-2], rank, config, len(A) if A.ndim == 3 else None, name)
    try:
        delta.load_state_dict(held, assign=True)
    except RuntimeError as error:
        wrong = str(error).splitlines()[-1].strip()
        raise InputError(f"{file} contradicts adapter_config.json next to it, in {name}: {wrong}") from error
    return delta.requires_grad_(False)
