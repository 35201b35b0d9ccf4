"""How much memory a run will take, from the shapes of its model and before any weight is loaded.

The estimate is a sum, and the line that is printed says what it assumes of the activations. What they really are
depends on the architecture, the allocator and the attention: docs/run.md compares the estimate with measured peaks.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from lrlora.data import TaskData
from lrlora.data.encode import encode_rows
from lrlora.data.length import length_of_rows
from lrlora.data.tasks import IMAGES
from lrlora.saved.base import BaseOptions, left_plain
from lrlora.saved.processor import forward_arguments
from lrlora.training.config import TrainConfig
from lrlora.training.placement import check_names, leave_unused_out
from lrlora.tuner.layer import LRLoraLayer

_SAMPLE = 64
"""Training rows that are tokenised to know how long a row is."""
_QUANTISED = {"bnb-4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "bnb-8bit": 1.0, "torchao-int8": 1.0}
"""Bytes of a weight. NF4: half a byte, a byte for 64 of them and a float32 for 256 of those (arXiv 2305.14314)."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a run is estimated to take, in one process and on one kind of memory.

    Args:
        base: its weights, in their precision or quantisation.
        adapter: what is trained, float32.
        gradients: of what is trained.
        optimizer: the two moments of AdamW.
        activations: of a batch of `rows` rows of `tokens` tokens: what every linear layer reads and writes, three
            float32 logits a token, and of one adapted layer dW and its gradient. With gradient checkpointing the
            hidden states between the blocks, and all of the former of one block.
        rows: of a batch.
        tokens: of the longest of the training rows looked at; of images the pixels a side.
        held: what this process holds before; 0 for a GPU.
        unit: of `tokens`.
    """

    base: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    rows: int
    tokens: int
    held: int = 0
    unit: str = "tokens"

    @property
    def total(self) -> int:
        """All of it."""
        return self.base + self.adapter + self.gradients + self.optimizer + self.activations + self.held


@dataclass(frozen=True)
class Machine:
    """Memory that there is: bytes that are free, bytes in all, and whose they are, in words."""

    free: int
    all: int
    whose: str


def estimate(base: Any, config: TrainConfig, task: TaskData, tokenizer: Any, task_type: str, is_bf16: bool) -> Memory:
    """The memory of a run. The adapter is put on the base.

    Args:
        base: the model without weights, from `lrlora.saved.load.bare_base`.
        config: the settings.
        task: the rows.
        tokenizer: of the model, or its image processor.
        task_type: PEFT's word for the kind of task.
        is_bf16: whether products are computed in bfloat16.

    Raises:
        InputError: rows, or names of modules, that the run cannot work with either.
    """
    weight = _bytes_of_weight(config.dtype, base)
    weights = bytes_of_base(base, config.base_options, weight)
    width = 2 if is_bf16 else weight
    if task.kind == IMAGES:
        from lrlora.data.pixels import size_of

        tokens, kept = size_of(tokenizer)[0], _kept_of_image(base, tokenizer, config.gradient_checkpointing, width)
    else:
        tokens = _longest(base, config, task, tokenizer)
        kept = tokens * _kept(base, config.gradient_checkpointing, width)
    adapter = config.adapter_config(task_type)
    leave_unused_out(base, adapter)
    check_names(base, adapter)
    with torch.random.fork_rng(devices=[]):
        model: Any = get_peft_model(base, adapter, low_cpu_mem_usage=True)
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    adapted = [layer for layer in model.modules() if isinstance(layer, LRLoraLayer)]
    largest = max((layer.out_features * layer.in_features for layer in adapted), default=0)
    return Memory(
        base=weights,
        adapter=trained,
        gradients=trained,
        optimizer=2 * trained,
        activations=config.batch_size * kept + 2 * 4 * largest,
        rows=config.batch_size,
        tokens=tokens,
        held=0 if _is_on_gpu(config.base_options) else _resident(),
        unit="pixels a side" if task.kind == IMAGES else "tokens",
    )


def _longest(base: Any, config: TrainConfig, task: TaskData, tokenizer: Any) -> int:
    """Tokens of the longest of a few training rows."""
    length = length_of_rows(config.max_length, tokenizer, base)
    some = dataclasses.replace(task, train=task.train.select(range(min(_SAMPLE, len(task.train)))))
    return max(len(ids) for ids in encode_rows(some, tokenizer, length, config.template, "train")["input_ids"])


def bytes_of_base(base: Any, options: BaseOptions, weight: int) -> int:
    """Bytes of a base's weights and buffers as the options load it; weights that are shared count once.

    Args:
        base: the model, on any device.
        options: how it is loaded.
        weight: bytes of a weight that is not quantised.
    """
    plain = left_plain(base)
    quantised = {
        id(module.weight)
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not any(f"{name}.".startswith(f"{other}.") for other in plain)
    }
    small = _QUANTISED.get(options.quantization, weight)
    found = sum(p.numel() * (small if id(p) in quantised else weight) for p in base.parameters())
    return round(found) + sum(b.numel() * b.element_size() for b in base.buffers())


def machine(options: BaseOptions) -> Machine | None:
    """The memory that the base goes into: of the GPUs, or of this machine; None where it cannot be known."""
    if _is_on_gpu(options):
        several = options.device_map in ("auto", "balanced", "balanced_low_0", "sequential")
        devices = range(torch.cuda.device_count()) if several else [torch.cuda.current_device()]
        found = [torch.cuda.mem_get_info(device) for device in devices]
        name = torch.cuda.get_device_name()
        whose = name if len(found) == 1 else f"{len(found)} GPUs ({name})"
        return Machine(sum(free for free, _ in found), sum(total for _, total in found), whose)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    of_name = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if len(line.split()) > 1}
    limit = _limit_of_container() or of_name["MemTotal"]
    return Machine(min(of_name["MemAvailable"], limit), min(of_name["MemTotal"], limit), "this machine")


def said_of_memory(memory: Memory, options: BaseOptions, there: Machine | None) -> list[str]:
    """The estimate in one line, and a warning where the weights alone do not fit."""
    how = options.dtype if options.quantization == "none" else f"{options.quantization} and {options.dtype}"
    held = f", this process before {_said(memory.held)}" if memory.held else ""
    has = "" if there is None else f"; {there.whose} has {_said(there.free)} free of {_said(there.all)}"
    lines = [
        f"memory: about {_said(memory.total)}: base {_said(memory.base)} in {how}, adapter {_said(memory.adapter)}, "
        f"gradients {_said(memory.gradients)}, AdamW {_said(memory.optimizer)}, activations "
        f"{_said(memory.activations)} (assuming {memory.rows} rows of {memory.tokens} {memory.unit}){held}{has}"
    ]
    if there is not None and memory.base > there.free:
        lines.append(
            f"warning: the weights need {_said(memory.base)} and {there.whose} has {_said(there.free)} free: expect "
            "the process to be killed or out of memory; --dtype bfloat16 needs half of float32, --quantization "
            "bnb-4bit about a seventh, --device_map auto uses all GPUs"
        )
    return lines


def _kept(base: Any, is_checkpointed: bool, width: int) -> int:
    """Bytes of activations that a token keeps for the backward pass."""
    output = base.get_output_embeddings()
    linear = [m for m in base.modules() if isinstance(m, nn.Linear | Conv1D) and m is not output]
    read_and_written = width * sum(sum(module.weight.shape) for module in linear)
    logits = 0 if output is None else 3 * 4 * output.weight.shape[0]
    if not is_checkpointed:
        return read_and_written + logits
    described = base.config.get_text_config()
    blocks = getattr(described, "num_hidden_layers", 1)
    return math.ceil(read_and_written / blocks) + width * blocks * getattr(described, "hidden_size", 0) + logits


@torch.no_grad()
def _kept_of_image(base: Any, processor: Any, is_checkpointed: bool, width: int) -> int:
    """Bytes of activations that an image keeps: what every linear layer and convolution reads and writes."""
    from lrlora.data.pixels import size_of

    counts: list[int] = []

    def count(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        counts.append(inputs[0].numel() + output.numel())

    layers = [module for module in base.modules() if isinstance(module, nn.Linear | Conv1D | nn.Conv2d)]
    hooks = [module.register_forward_hook(count) for module in layers]
    try:
        pixels = torch.empty(1, 3, *size_of(processor), device="meta")
        base(pixel_values=pixels, **forward_arguments(base, processor))
    finally:
        for hook in hooks:
            hook.remove()
    blocks = getattr(base.config, "num_hidden_layers", 1) if is_checkpointed else 1
    return math.ceil(width * sum(counts) / blocks)


def _bytes_of_weight(dtype: str, base: Any) -> int:
    if dtype == "auto":
        # what the files hold where config.json does not say is not read for an estimate: no more than float32
        dtype = getattr(base, "written_dtype", None) or "float32"
    return getattr(torch, dtype).itemsize


def _is_on_gpu(options: BaseOptions) -> bool:
    return torch.cuda.is_available() and options.device_map != "cpu"


def _resident() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _limit_of_container() -> int | None:
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(limit) if limit.isdigit() else None


def _said(count: int) -> str:
    """Bytes in words: 1 GB is 10^9 bytes."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1000:.3g} kB"
