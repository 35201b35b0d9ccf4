"""FSDP and DeepSpeed, as accelerate and transformers' Trainer set them up: what lrlora refuses, and what it sets."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from transformers import Trainer

from lrlora.errors import InputError
from lrlora.ranks.measure import LayerRank, layer_ranks
from lrlora.training import processes
from lrlora.tuner.sharded import is_sharded, whole_state


def check_environment() -> None:
    """Refuse settings of accelerate that cannot work, before a model is loaded.

    Raises:
        InputError: FSDP or DeepSpeed without devices, or weights that only the first process would read.
    """
    asked = {name: os.environ.get(name, "").lower() in ("1", "true") for name in _ASKED}
    for name, which in _ASKED.items():
        # as accelerate does itself, which then trains under DDP and does not say so
        if asked[name] and not torch.accelerator.is_available() and "ACCELERATE_TORCH_DEVICE" not in os.environ:
            raise InputError(
                f"accelerate uses {which} only where each process has a device, such as a GPU, and there is none; on "
                "CPUs train under DDP: torchrun --nproc-per-node N -m lrlora train"
            )
    if asked["ACCELERATE_USE_FSDP"] and os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "").lower() in ("1", "true"):
        raise InputError(
            "fsdp_cpu_ram_efficient_loading reads the weights in the first process only, and accelerate cannot hand on "
            "the buffers of an adapter (tau); set it to false in accelerate's config"
        )


_ASKED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}


def settle(trainer: Trainer) -> None:
    """Make a trainer's FSDP fit an adapter; without FSDP, nothing.

    Raises:
        InputError: FSDP1, or checkpoints in parts.
    """
    if not trainer.is_fsdp_enabled:
        return
    plugin: Any = trainer.accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise InputError(f"lrlora train shards by FSDP2, got fsdp_version {plugin.fsdp_version}; set fsdp_version: 2")
    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise InputError(
            f"checkpoints hold whole tensors of the adapter, got fsdp_state_dict_type {plugin.state_dict_type}; set "
            "FULL_STATE_DICT"
        )
    model: Any = trainer.model
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = _units(model)


class Held(NamedTuple):
    """What a model holds at the end of a training.

    Args:
        rows: its learned ranks; none in processes that did not measure them.
        state: the tensors of its adapter, gathered; None where the model holds them whole.
    """

    rows: list[LayerRank]
    state: dict[str, torch.Tensor] | None


def held_at_the_end(trainer: Trainer, has_ranks: bool) -> Held:
    """What is written at the end; of a model in shards every process takes part, else the first one measures."""
    model: Any = trainer.model
    together = is_sharded(model)
    rows = layer_ranks(model) if has_ranks and (together or processes.is_first()) else []
    return Held(rows, whole_state(model) if together else None)


def _units(model: Any) -> list[str]:
    """The classes of blocks that transformers names, without those that hold the embeddings.

    accelerate makes a unit of the embeddings, and fails where they are in one already (BERT).
    """
    embeddings = model.get_input_embeddings()
    around = {type(module).__name__ for module in model.modules() if any(m is embeddings for m in module.modules())}
    return sorted(name for name in getattr(model, "_no_split_modules", None) or () if name not in around)
