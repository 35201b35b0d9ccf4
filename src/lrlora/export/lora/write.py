"""Write an adapter as a plain LoRA adapter of PEFT, and say what that loses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lrlora.export.base import EXPORTED_FILES, copy_tokenizer
from lrlora.export.cards import finish_exported
from lrlora.export.lora.choose import RankChoice, choose_ranks, total_error
from lrlora.export.lora.factor import Factors, factorise
from lrlora.export.lora.llama_cpp import said_of_llama_cpp
from lrlora.export.lora.names import pattern_keys, target_modules
from lrlora.export.lora.plain import CONVOLUTIONS, METHODS, AnyLayer, layers_of, refuse_what_changes_the_base
from lrlora.export.lora.servers import check_known, check_server
from lrlora.export.lora.vllm import said_of_vllm
from lrlora.export.skeleton import Skeleton, skeleton
from lrlora.files import check_folder, new_folder, write_json
from lrlora.method.rank import singular_values
from lrlora.saved.adapter import AdapterFolder, base_config, read_adapter
from lrlora.saved.base import IMAGE_CLS
from lrlora.saved.names import ADAPTER_WEIGHTS, BASE, LABELS, POOLING
from lrlora.saved.pooling import own_pooling
from lrlora.saved.updates import adapter_settings, order_config

MOST_IS_LOST = 0.5
"""Relative error of a layer from which the export warns of it."""


@dataclass(frozen=True)
class ExportedLayer:
    """One layer of an exported adapter.

    Args:
        layer: name of the module.
        shape: (out, in) of dW.
        rank: of the exported factors.
        parameters: rank (out + in).
        relative_error: ||dW - B'A'||_F / ||dW||_F; 0 where dW is zero.
        norm: ||dW||_F.
        is_randomised: whether a randomised decomposition was good enough.
    """

    layer: str
    shape: tuple[int, int]
    rank: int
    parameters: int
    relative_error: float
    norm: float
    is_randomised: bool


@dataclass(frozen=True)
class LoraExport:
    """What an export wrote.

    Args:
        folder: the adapter folder.
        layers: its layers.
        relative_error: sqrt(sum ||dW - B'A'||^2) / sqrt(sum ||dW||^2).
        parameters: of all factors together.
    """

    folder: Path
    layers: list[ExportedLayer]
    relative_error: float
    parameters: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "folder": str(self.folder)}


def export_lora(
    adapter: str,
    out: str | Path,
    choice: RankChoice | None = None,
    model: str | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
    server: str | None = None,
) -> LoraExport:
    """Write an adapter as plain LoRA: a truncated singular value decomposition of the dW of each layer.

    The folder loads with `peft.PeftModel.from_pretrained` in a process without lrlora. Heads and biases are copied.
    alpha = r everywhere: the scale is 1 for every program that reads the patterns. The base's weights are never read.

    Args:
        adapter: an adapter folder, or a run folder that holds one.
        out: folder to write; must be empty or missing.
        choice: how the ranks are chosen; an energy of 0.99 if left out.
        model: base model; None means the one that the adapter names.
        overwrite: take the place of a folder that is there, if it holds nothing but what an export writes.
        say: gets a line for what the user should know.
        server: "vllm" or "llama.cpp": one rank for all layers, and what this server does not take is refused.

    Raises:
        InputError: an adapter, base, choice, server or folder that cannot work; layers that plain LoRA has no form for;
            an `out` that is, holds or is inside the adapter, its run or its base.

    Example:
        export_lora("runs/demo", "exported", RankChoice(energy=0.95))
    """
    choice = RankChoice() if choice is None else choice
    if server is not None:
        check_known(server)
        choice = replace(choice, uniform=True)
    saved = read_adapter(adapter, model)
    check_folder(Path(out), overwrite, EXPORTED_FILES, saved.sources())
    refuse_what_changes_the_base(saved)
    built = skeleton(saved, METHODS)
    layers = layers_of(built, saved)
    if server is not None:
        # before the decompositions, which take long
        check_server(
            server, {"r": 1, **common_fields(saved, built, layers)}, _shapes_at_rank_1(saved, layers), saved.task
        )
    ranks = ranks_of(layers, choice)
    made = (factorise(layer.matrix(), rank) for layer, rank in zip(layers, ranks, strict=True))
    return write_lora(saved, built, made, out, overwrite, say, server)


def write_lora(
    saved: AdapterFolder,
    built: Skeleton,
    made: Iterable[Factors],
    out: str | Path,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
    server: str | None = None,
) -> LoraExport:
    """Write factors as a plain LoRA adapter, with the heads and biases of the adapter that they are from.

    Args:
        saved: that adapter.
        built: the same on a base without weights.
        made: the factors of its layers, in their order.
        out: as in `export_lora`.
        overwrite: as in `export_lora`.
        say: as in `export_lora`.
        server: as in `export_lora`, which has checked it; nothing is said of others then.

    Raises:
        InputError: a folder that cannot be written.
    """
    layers, tensors, rows = layers_of(built, saved), {}, []
    with new_folder(Path(out), overwrite, EXPORTED_FILES, saved.sources()) as folder:
        for layer, factors in zip(layers, made, strict=True):
            tensors.update(as_peft_names_them(layer, factors.A, factors.B))
            rows.append(_row(layer, len(factors.A), factors))
        ranks = [row.rank for row in rows]
        tensors.update(_trained_whole(saved))
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        _config(saved, built, layers, ranks).save_pretrained(str(folder))
        order_config(folder)
        copy_tokenizer(saved.folder, folder)
        if saved.labels is not None:
            write_json(folder / LABELS, saved.labels)
        if saved.pooling != "auto":
            write_json(folder / POOLING, saved.pooling)
        if saved.options.measured:
            write_json(folder / BASE, saved.options.measured)
        error = total_error([row.relative_error * row.norm for row in rows], [row.norm for row in rows])
        finish_exported(folder, Path(out), saved, built.base, rows, error, say)
        config, shapes = adapter_settings(folder), {name: tuple(value.shape) for name, value in tensors.items()}
    for line in (said_of_vllm(config, shapes), said_of_llama_cpp(config)):
        # neither serves image classifiers
        if line is not None and saved.task != IMAGE_CLS and server is None:
            say(line)
    if lost := [row for row in rows if row.relative_error > MOST_IS_LOST]:
        worst = max(lost, key=lambda row: row.relative_error)
        say(
            f"warning: {len(lost)} of {len(rows)} layers lose more than half of |dW|, most {worst.layer} "
            f"({worst.relative_error:.2g} at rank {worst.rank}): such an update has no small LoRA, as with a carrier "
            "whose gate is open; lrlora merge keeps it whole"
        )
    if saved.pooling not in ("auto", own_pooling(base_config(saved.base, saved.options) or {})):
        say(
            f"warning: it was trained with --pooling {saved.pooling}, which peft does not know: lrlora reads it from "
            f"{POOLING}; elsewhere call lrlora.training.set_pooling(base, {saved.pooling!r}) before peft loads it"
        )
    return LoraExport(Path(out).expanduser(), rows, error, sum(row.parameters for row in rows))


def ranks_of(layers: Sequence[AnyLayer], choice: RankChoice) -> list[int]:
    """The rank that each layer gets."""
    shapes = [layer.shape for layer in layers]
    spectra = [singular_values(layer.matrix()) for layer in layers] if choice.needs_spectra else []
    return choose_ranks(choice, spectra, shapes)


def _row(layer: AnyLayer, rank: int, factors: Factors) -> ExportedLayer:
    shape = layer.shape
    return ExportedLayer(
        layer=layer.name,
        shape=shape,
        rank=rank,
        parameters=rank * sum(shape),
        relative_error=factors.relative_error,
        norm=factors.norm,
        is_randomised=factors.is_randomised,
    )


def as_peft_names_them(layer: AnyLayer, A: Tensor, B: Tensor) -> dict[str, Tensor]:
    """The factors A [r, in] and B [out, r] of a layer as the tensors of a file of PEFT, by name."""
    prefix = f"base_model.model.{layer.name}"
    module: Any = layer.layer.get_base_layer()
    if isinstance(module, nn.Embedding):
        # rows of the table are inputs to PEFT: its update is (B A)^T
        return {
            f"{prefix}.lora_embedding_A": B.T.contiguous(),
            f"{prefix}.lora_embedding_B": A.T.contiguous(),
        }
    if isinstance(module, CONVOLUTIONS):
        A = A.reshape(len(A), *module.weight.shape[1:])
        B = B.reshape(*B.shape, *(1 for _ in module.weight.shape[2:]))
    return {f"{prefix}.lora_A.weight": A.contiguous(), f"{prefix}.lora_B.weight": B.contiguous()}


def _trained_whole(saved: AdapterFolder) -> dict[str, Tensor]:
    tensors = load_file(saved.folder / ADAPTER_WEIGHTS)
    return {name: value for name, value in tensors.items() if _is_trained_whole(name)}


def _is_trained_whole(name: str) -> bool:
    return ".lrlora_" not in name and ".lora_" not in name


def _shapes_at_rank_1(saved: AdapterFolder, layers: Iterable[AnyLayer]) -> dict[str, tuple[int, ...]]:
    """Of the tensors that an export would have, by name."""
    shapes = {name: shape for name, shape in saved.shapes.items() if _is_trained_whole(name)}
    for layer in layers:
        out, into = layer.shape
        factors = as_peft_names_them(layer, torch.zeros(1, into), torch.zeros(out, 1))
        shapes.update({name: tuple(value.shape) for name, value in factors.items()})
    return shapes


def _config(saved: AdapterFolder, built: Skeleton, layers: Sequence[AnyLayer], ranks: Sequence[int]) -> LoraConfig:
    # the largest rank is the config's: servers reserve memory by it
    r = max(ranks)
    keys = pattern_keys([layer.name for layer in layers])
    pattern = {key: rank for key, rank in zip(keys, ranks, strict=True) if rank != r}
    return LoraConfig(**common_fields(saved, built, layers), **_ranks(r, pattern), inference_mode=True)


def _ranks(r: int, pattern: dict[str, int]) -> dict[str, Any]:
    return {"r": r, "lora_alpha": r, "rank_pattern": pattern, "alpha_pattern": dict(pattern)}


def common_fields(saved: AdapterFolder, built: Skeleton, layers: Sequence[AnyLayer]) -> dict[str, Any]:
    """The fields of LoraConfig that say where its layers are and what else is trained."""
    bias = saved.config.get("bias", "none")
    return {
        "task_type": saved.config.get("task_type"),
        "auto_mapping": saved.config.get("auto_mapping"),
        "base_model_name_or_path": saved.base,
        "revision": saved.options.revision,
        "target_modules": target_modules([layer.name for layer in layers], built.modules),
        "modules_to_save": saved.config.get("modules_to_save"),
        "trainable_token_indices": saved.config.get("trainable_token_indices"),
        "bias": "lora_only" if bias == "lrlora_only" else bias,
        "fan_in_fan_out": any(isinstance(layer.layer.get_base_layer(), Conv1D) for layer in layers),
    }
