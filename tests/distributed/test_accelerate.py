"""`lrlora train` started by accelerate launch with the configs of examples/accelerate, in two processes on CPUs.

DDP, FSDP2 and ZeRO end where one process with the same global batch ends, also after SIGKILL.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import sentence_rows, write_rows
from tests.distributed.launch import accelerate, environment

STEPS = {"max_steps": 8, "save_steps": 3, "rank_steps": 4}
# AdamW makes a whole step of the rounding of a gradient near 0, unless epsilon is above it
HOW = {"learning_rate": 0.03, "c_learning_rate": 0.1, "weight_decay": 0.1, "adam_epsilon": 1e-3, "share": "global"}
TAU = {"tau": "auto", "tau_warmup_steps": 1, "tau_follow": 1.0}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> dict[str, Path]:
    """A model without dropout, which every process draws for itself, and rows; those held out make an odd batch."""
    folder = tmp_path_factory.mktemp("together")
    encoder = Path(shutil.copytree(tiny_encoder, folder / "encoder"))
    config = json.loads((encoder / "config.json").read_text())
    config.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    (encoder / "config.json").write_text(json.dumps(config))
    rows = sentence_rows()
    (folder / "rows").mkdir()
    write_rows(folder / "rows" / "train.jsonl", rows[:36])
    write_rows(folder / "rows" / "validation.jsonl", rows[36:45])
    return {"model": encoder, "data": folder / "rows", "alone": folder / "alone"}


def words(places: dict[str, Path], out: Path, batch: int) -> list[str]:
    values = {**STEPS, **HOW, **TAU, "model": places["model"], "data": places["data"], "out": out, "batch_size": batch}
    return ["train", *(word for name, value in values.items() for word in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def alone(places: dict[str, Path]) -> Path:
    """The run of one process."""
    run([sys.executable, "-m", "lrlora", *words(places, places["alone"], 4)])
    return places["alone"]


def run(command: list[str]) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(), check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended.stderr


def check_equal(together: Path, alone: Path, layout: str) -> None:
    """The same adapter, ranks and losses, and the same files."""
    one, two = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (alone, together))
    assert sorted(one) == sorted(two)
    assert max(value.abs().max() for name, value in one.items() if name.endswith(".theta")) > 0.01
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    assert {file.name for file in together.iterdir()} == {file.name for file in alone.iterdir()}
    found, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (together, alone))
    for name in ("train_loss", "loss", "accuracy", "trainable_parameters", "steps"):
        assert found[name] == pytest.approx(expected[name], abs=1e-5), name
    ranks, known = (json.loads((folder / "ranks.json").read_text()) for folder in (together, alone))
    assert len(ranks) == len(known)
    for row, other in zip(ranks, known, strict=True):
        assert row["layer"] == other["layer"]
        for name in ("stable_rank", "stable_rank_ba", "rms_over_tau", "relative_norm"):
            assert row[name] == pytest.approx(other[name], rel=1e-3), (row["layer"], name)
    records = [json.loads(line) for line in (together / "ranks.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [4, 8]
    assert len(records[0]["layers"]) == len(ranks)
    checkpoint = together / "checkpoints" / "checkpoint-6"
    of_layout = {"fsdp2": "pytorch_model_fsdp.bin", "zero2": "global_step6", "zero3": "global_step6"}
    assert (checkpoint / of_layout.get(layout, "optimizer.pt")).exists(), "it was not trained as it says"


def skip_without(layout: str) -> None:
    if layout.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")


@pytest.mark.parametrize("layout", ["ddp", "fsdp2", "zero2", "zero3"])
def test_a_run_in_two_processes_equals_one(places, alone, tmp_path, layout):
    skip_without(layout)
    said = run(accelerate(layout, *words(places, tmp_path / "run", 2)))
    assert said.count("lrlora: memory: about ") == 1, "one process speaks"
    check_equal(tmp_path / "run", alone, layout)


@pytest.mark.parametrize("layout", ["ddp", "fsdp2", "zero2", "zero3"])
def test_a_run_that_was_killed_goes_on(places, alone, tmp_path, layout):
    skip_without(layout)
    out = tmp_path / "run"
    command = accelerate(layout, *words(places, out, 2))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    until = time.monotonic() + 200
    # the log has its line of a checkpoint before, and the first process writes this file last
    while not is_json(out / "checkpoints" / "checkpoint-3" / "trainer_state.json"):
        assert time.monotonic() < until and process.poll() is None, "no checkpoint came"
        time.sleep(0.005)
    started = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, started)):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert not (out / "metrics.json").exists(), "it had ended before it was killed"
    run(command)
    assert json.loads((out / "metrics.json").read_text())["was_resumed"]
    check_equal(out, alone, layout)


def is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text())
    except (OSError, ValueError):
        return False
    return True
