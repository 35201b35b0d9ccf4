"""Two processes on CPUs with gloo end where one process with the same global batch ends, and save a whole adapter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("worker.py")


def train(layout: str, share: str, folder: Path) -> dict[str, torch.Tensor]:
    """The adapter after training."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[2])}
    launch = [sys.executable]
    if layout != "single":
        launch += ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone"]
    command = [*launch, str(WORKER), layout, share, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return load_file(folder / "adapter.safetensors")


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
    ],
)
def test_two_processes_equal_one(tmp_path, layout, share):
    alone = train("single", share, tmp_path / "single")
    together = train(layout, share, tmp_path / layout)
    assert sorted(together) == sorted(alone)
    assert len(alone) == 6 * 4, "six layers of A, B, c and tau"
    assert len([name for name in together if name.endswith(".c")]) == 6
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
