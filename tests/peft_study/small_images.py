"""Studies of images that run in seconds: a tiny DINOv2, pictures of three colours with noise."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from PIL import Image
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from peft_study.spec import Arm, Study, Task

COLOURS = {"blue": (90, 90, 150), "green": (90, 150, 90), "red": (150, 90, 90)}
LORA = Arm("lora", "lora", {"r": 2})
OURS = Arm("ours", "lrlora", {"r": 2, "phi": "linear", "carrier": "signs", "carrier_start": "open"})


def tiny_dinov2(folder: Path) -> Path:
    """Two blocks for images of 32 pixels in patches of 8."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**sizes, image_size=32, patch_size=8)).save_pretrained(folder)
    sides = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
    BitImageProcessorPil(**sides).save_pretrained(folder)
    return folder


def pictures(folder: Path, train: int = 10, test: int = 4) -> Path:
    """Class folders of three colours, so many pictures of each."""
    draw = numpy.random.default_rng(0)
    for side, count in (("train", train), ("test", test)):
        for name, colour in COLOURS.items():
            (folder / side / name).mkdir(parents=True)
            for number in range(count):
                noise = draw.normal(0, 60, (36, 36, 3)) + numpy.array(colour)
                Image.fromarray(noise.clip(0, 255).astype("uint8")).save(folder / side / name / f"{number}.png")
    return folder


def images_study(model: Path | str, data: Path | str, arms=(LORA, OURS), task: dict | None = None, **fields) -> Study:
    """Four steps, two rates, two seeds, 6 rows for validation."""
    chosen = {
        "kind": "image-classification", "data": str(data), "validation_rows": 6, "max_steps": 4, "batch_size": 8,
        "image_size": 24,
    }  # fmt: skip
    return Study(
        study="seen",
        arms=tuple(arms),
        tasks=(Task("colours", **{**chosen, **(task or {})}),),
        **{"learning_rates": (1e-3, 1e-2), "seeds": (0, 1), "search_seeds": (7,), "model": str(model), **fields},
    )
