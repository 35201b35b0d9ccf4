"""How everything here is measured: in turn, in one process, medians of many rounds, with all that repeats it."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).with_name("results")
SETTLE = 0.03
"""Seconds that a short step is run before it is timed."""


def in_turn(steps: dict[str, Callable[[], Any]], rounds: int, warm_ups: int = 2) -> dict[str, list[float]]:
    """Seconds of every step in every round; the steps take turns: a slow minute slows them all.

    Before each step 32 MiB are written. As in the middle of a model's step, what is read is then not in a cache, and
    torch's threads are awake: after 50 ms of Python, such as a collection of garbage, waking them takes 0.3 ms.
    Before that, a step that is shorter than 30 ms is run for as long: for 20 ms after another step that freed 100 MB,
    one of 2 ms took up to 15 here.
    """
    seconds = {name: min(_seconds(step) for _ in range(warm_ups)) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    other = torch.zeros(1 << 23)
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, step in steps.items():
                for _ in range(int(SETTLE / seconds[name])):
                    step()
                other.add_(1)
                times[name].append(_seconds(step))
    finally:
        gc.enable()
    return times


def _seconds(step: Callable[[], Any]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def median(times: list[float]) -> float:
    """Median seconds."""
    return statistics.median(times)


def peak_bytes(step: Callable[[], Any]) -> int:
    """Most bytes that torch's CPU allocator held at once during a step, beyond what it held before.

    The step has run before: what it makes once is there.
    """
    gc.collect()
    with torch.profiler.profile(profile_memory=True) as profiled:
        step()
    held = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def environment() -> dict[str, Any]:
    """Machine, versions and commit."""
    import peft
    import transformers

    import lrlora

    return {
        "device": _cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "peft": peft.__version__,
        "transformers": transformers.__version__,
        "lrlora": lrlora.__version__,
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        "date": time.strftime("%Y-%m-%d"),
    }


def on_this_cpu(name: str) -> str:
    """A name in the folder of the instructions that torch uses here, such as avx2/step: each has results of its own."""
    return f"{torch.backends.cpu.get_cpu_capability().lower()}/{name}"


def write(name: str, rows: list[dict[str, Any]], more: dict[str, Any] | None = None) -> None:
    """results/NAME.json: the environment, with `more` of it, and every row with all its repeats."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.with_suffix(".tmp")
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    begun.write_text(
        '{"environment": ' + json.dumps(environment() | (more or {})) + ',\n "rows": [\n' + lines + "\n]}\n",
        encoding="utf-8",
    )
    begun.replace(path)


def write_each(name: str, rows: Iterable[dict[str, Any]], more: dict[str, Any] | None = None) -> None:
    """As `write`, each row as soon as it is measured: a run that is stopped keeps what it has."""
    done: list[dict[str, Any]] = []
    for row in rows:
        done.append(row)
        write(name, done, more)


def read(name: str) -> dict[str, Any]:
    """What `write` wrote."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # a copy of the tree without its history
