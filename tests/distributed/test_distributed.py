"""Two processes on CPUs with gloo end where one process with the same global batch ends, and save a whole adapter."""

import functools
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import rel_rms
from tests.distributed.launch import launch

WORKER = Path(__file__).with_name("worker.py")
TRAINER = Path(__file__).with_name("trainer_worker.py")


def train(layout: str, share: str, folder: Path) -> dict[str, torch.Tensor]:
    """The adapter after training in a loop of our own."""
    launch(str(WORKER), layout, share, str(folder), processes=1 if layout == "single" else 2)
    return load_file(folder / "adapter.safetensors")


def train_with_trainer(layout: str, share: str, folder: Path, *flags: str) -> dict[str, torch.Tensor]:
    """The adapter after training with transformers.Trainer."""
    processes = 1 if layout == "single" else 2
    said = launch(str(TRAINER), layout, share, str(folder), *flags, processes=processes, DS_ACCELERATOR="cpu")
    wrapper = {"single": "PeftModel", "ddp": "DistributedDataParallel", "fsdp2": "FSDPPeftModel", "zero3": "DeepSpeed"}
    assert f"trained as {wrapper[layout]}" in said, said[-2000:]
    return load_file(folder / "adapter" / "adapter_model.safetensors")


Alone = Callable[[Callable[..., dict[str, torch.Tensor]], str], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """What one process makes of a kind of training and of sharing; trained once for all layouts."""
    return functools.cache(lambda train, share: train("single", share, tmp_path_factory.mktemp("single")))


def check(together: dict[str, torch.Tensor], alone: dict[str, torch.Tensor]) -> None:
    """The same adapter, whole, with knees that have moved."""
    assert sorted(together) == sorted(alone)
    seeds = [name for name in alone if name.endswith(".seed")]
    assert len(seeds) in (0, 6)
    assert len(alone) - len(seeds) == 6 * 4, "six layers of A, B, theta and tau, and with a carrier its seed"
    assert len([name for name in together if name.endswith(".theta")]) == 6
    for name, value in alone.items():
        assert value.isfinite().all(), name
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    ("layout", "share"),
    [
        ("ddp", "matrix"),
        ("ddp", "block"),
        ("fsdp2", "matrix"),
        ("fsdp1", "matrix"),
        # a phi that layers share must lie in one unit with all of them: their block, or the whole model
        ("fsdp1", "block"),
        ("fsdp2", "block"),
        ("fsdp1", "experts"),
        ("fsdp2", "experts"),
        ("fsdp2 in one unit", "type"),
        ("ddp", "signs"),
        ("fsdp1", "signs"),
        ("fsdp2", "signs"),
    ],
)
def test_two_processes_equal_one(tmp_path, alone, layout, share):
    check(train(layout, share, tmp_path / layout), alone(train, share))


@pytest.mark.parametrize(
    ("layout", "share"),
    [
        ("ddp", "matrix"),
        ("fsdp2", "matrix"),
        ("fsdp2", "global"),
        ("zero3", "matrix"),
        ("zero3", "block"),
        ("zero3", "type"),
        ("zero3", "global"),
    ],
)
def test_the_trainer_in_two_processes_equals_one(tmp_path, alone, layout, share):
    if layout == "zero3" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    one = alone(train_with_trainer, share)
    check(train_with_trainer(layout, share, tmp_path / "two"), one)
    if layout != "fsdp2":  # accelerate resumes FSDP2 on devices alone: "Expected device to be set"
        check(train_with_trainer(layout, share, tmp_path / "two", "resume"), one)


def test_the_command_line_in_two_processes_equals_one(tiny_encoder, sentences, tmp_path):
    # without dropout, which every process draws for itself
    folder = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text())
    config.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    (folder / "config.json").write_text(json.dumps(config))
    flags = ["--model", str(folder), "--data", str(sentences), "--max_steps", "4", "--tau", "auto"]
    # no --r: torchrun takes it for an abbreviation of its own flags
    flags += ["--tau_warmup_steps", "1", "--save_steps", "2"]
    for name, processes, rows in (("one", 1, "4"), ("two", 2, "2")):
        launch(
            "-m", "lrlora", "train", *flags, "--batch_size", rows, "--out", str(tmp_path / name), processes=processes
        )
    folders = [tmp_path / name for name in ("one", "two")]
    one, two = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in folders)
    assert sorted(one) == sorted(two)
    # AdamW turns the rounding of a gradient near 0 into a whole step, so no tensor is equal to the last bit; processes
    # that trained apart would lie 0.56 from one another in B
    names = sorted(name for name in one if name.endswith(".B"))
    whole, parts = (torch.cat([state[name].flatten() for name in names]) for state in (one, two))
    assert rel_rms(parts, whole.double()) < 0.2
    assert {f.name for f in folders[1].iterdir()} == {f.name for f in folders[0].iterdir()}
    found, expected = (json.loads((folder / "metrics.json").read_text()) for folder in reversed(folders))
    for name in ("train_loss", "loss"):
        assert found[name] == pytest.approx(expected[name], rel=0.02), name
