"""Two processes on this machine, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def launch(*arguments: str, processes: int = 2, **environment: str) -> str:
    """Run a script, or a module after "-m", in so many processes; returns what was said, fails where one failed."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    everything = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **environment}
    ended = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=300, env=everything, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout + ended.stderr


def accelerate(layout: str, *words: str) -> list[str]:
    """The command that starts `lrlora` in two processes, by a config of examples/accelerate; on CPUs."""
    config = ROOT / "examples" / "accelerate" / f"{layout}.yaml"
    # DDP needs no help on CPUs
    what = ["-m", "lrlora"] if layout == "ddp" else [str(Path(__file__).with_name("on_cpus.py"))]
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), *what, *words]


def environment() -> dict[str, str]:
    """Of these processes: one thread each, no hub."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    more = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": path}
    return {**os.environ, **more}
