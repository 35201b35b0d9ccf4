"""Whole runs of `lrlora train` on the demo, of LoRA and of LR-LoRA, first and second: python -m benchmarks.first_run

The first run of LR-LoRA on a machine compiles the passes of phi. Each round has a cache of its own, in which the
embedded model is and the compiled library is not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import measure
from lrlora.data.embedded import encoder_folder

ROUNDS = 9


def seconds_of(method: str, cache: Path) -> float:
    """Seconds of one run, from the start of the process to its end."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lrlora", "train", "--method", method, "--compare", "false"]
        began = time.perf_counter()
        subprocess.run(
            [*command, "--out", f"{folder}/run"],
            check=True,
            capture_output=True,
            env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        )
        return time.perf_counter() - began


def main() -> None:
    """One row, into first_run.json of this CPU's instructions."""
    model = encoder_folder()
    seconds: dict[str, list[float]] = {"LoRA": [], "lrlora, first": [], "lrlora, second": []}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder)
            (cache / "lrlora").mkdir()
            (cache / "lrlora" / model.name).symlink_to(model)
            for name, times in seconds.items():
                times.append(seconds_of("lora" if name == "LoRA" else "lrlora", cache))
            print({name: round(times[-1], 1) for name, times in seconds.items()}, flush=True)
    measure.write(measure.on_this_cpu("first_run"), [{"what": "lrlora train", "seconds": seconds}])


if __name__ == "__main__":
    main()
