"""Runs whose ranks are known: written by hand, without a training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from PIL import Image
from safetensors.torch import save_file

import lrlora
from lrlora.data import load_task
from lrlora.data.tasks import MACRO_F1, compute_metrics
from lrlora.files import read_json, write_json
from lrlora.ranks.measure import measure
from lrlora.saved.identity import digest_of_rows
from lrlora.saved.run import RunFolder
from lrlora.saved.updates import stored_updates
from lrlora.training import TrainConfig

MODULES = ("attention.self.query", "attention.self.value", "intermediate.dense", "output.dense")


def with_spectrum(sigma: list[float], rows: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A [r, columns] and B [rows, r] whose product has these singular values."""
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(rows, len(sigma), generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(columns, len(sigma), generator=generator, dtype=torch.float64))
    root = torch.tensor(sigma, dtype=torch.float64).sqrt()
    return (root[:, None] * right.T).float().contiguous(), (left * root).float().contiguous()


def write_adapter(
    folder: Path, spectra: dict[str, list[float]], c_shift: float = 0.0, tau: float = math.inf, seed: int = 0, **fields
) -> Path:
    """An adapter as PEFT saves it, whose B A have these singular values; with tau = inf so has dW."""
    folder.mkdir(parents=True)
    tensors = {}
    generator = torch.Generator().manual_seed(seed)
    for number, (name, sigma) in enumerate(spectra.items()):
        A, B = with_spectrum(sigma, 40, 30, 1000 * seed + number)
        theta = 0.1 * c_shift * torch.randn(11, generator=generator)
        parts = {"A": A, "B": B, "theta": theta, "tau": torch.tensor(tau)}
        if fields.get("carrier", "none") != "none":
            parts["seed"] = torch.tensor(number)
        tensors |= {f"base_model.model.{name}.lrlora_delta.{part}": value for part, value in parts.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    r = len(next(iter(spectra.values())))
    settings = {"r": r, "lora_alpha": 2.0 * r, "target_modules": ["query"], "task_type": "SEQ_CLS", **fields}
    config = lrlora.LRLoraConfig(**settings, base_model_name_or_path="./no-such-base")
    config.save_pretrained(str(folder))
    return folder


def write_run(folder: Path, seed: int = 0, blocks: int = 6, name: str = "bert.encoder.layer", **fields) -> Path:
    """A run folder with adapter, settings, metrics, ranks, and three records while training."""
    generator = torch.Generator().manual_seed(seed)
    spectra = {
        f"{name}.{b}.{module}": [1.0, *(0.2 + 0.5 * torch.rand(3, generator=generator)).tolist()]
        for b in range(blocks)
        for module in MODULES
    }
    adapter = write_adapter(folder / "adapter", spectra, seed=seed, **{"c_shift": 0.3, "tau": 0.04, **fields})
    rows = [measure(update, None).as_dict() for update in stored_updates(adapter)]
    write_json(folder / "ranks.json", rows)
    write_json(folder / "config.json", {"settings": {"seed": seed, "r": 4, "learning_rate": 2e-3, "phi": "sinc"}})
    write_json(folder / "metrics.json", {"task": "planted", "metric": "accuracy", "accuracy": 0.8 + seed / 100})
    lines = [json.dumps({"step": step, "is_quick": False, "seconds": 0.1, "layers": rows}) for step in (10, 20, 30)]
    (folder / "ranks.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_images(folder: Path, classes: list[str], count: int, size: tuple[int, int] = (12, 8)) -> Path:
    """Class folders in train/ and test/, `count` images of noise each, no two alike."""
    draw = numpy.random.default_rng(0)
    for side in ("train", "test"):
        for name in classes:
            (folder / side / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (size[1], size[0], 3)).astype("uint8")
                Image.fromarray(pixels).save(folder / side / name / f"{number}.png")
    return folder


def add_predictions(
    run: Path, data: Path, predict: Callable[[int, str], tuple[str, float]], **settings: object
) -> list[dict]:
    """Make a planted run one of image classification on these images.

    Args:
        run: from `write_run`.
        data: from `write_images`.
        predict: from the place of a held-out image and its class to what is predicted, and how surely.
        settings: further ones of the run.
    """
    config = TrainConfig.of(data=str(data), **settings)
    task = load_task(config.data_source())
    rows = []
    for place, row in enumerate(task.evaluation):
        true = task.labels[row["label"]]  # pyright: ignore[reportArgumentType, reportCallIssue]
        name, confidence = predict(place, true)
        rows.append({"row": row["row"], "file": row["file"], "true": true, "predicted": name, "confidence": confidence})  # pyright: ignore[reportArgumentType, reportCallIssue]
    described = read_json(run / "config.json")
    described["settings"] |= {"data": str(data), **settings}
    write_json(run / "config.json", {**described, "inputs": {"data": digest_of_rows(task), "model": "planted"}})
    write_json(run / "adapter" / "labels.json", task.labels)
    RunFolder(run).save_predictions(rows)
    numbers = ([task.labels.index(row[side]) for row in rows] for side in ("predicted", "true"))
    found = compute_metrics(("accuracy", MACRO_F1), *numbers)
    write_json(run / "metrics.json", {"task": "planted", "metric": "accuracy", **found})
    return rows
