"""The command `lrlora study` in a process of its own, and what is seen of it from outside."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time

import psutil

from peft_study import read_study


def start(file, out, *flags):
    """The command itself, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "lrlora", "study", str(file), "--out", str(out), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def workers_of(process):
    """Its workers; multiprocessing has another child that counts resources."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        # one that ends while it is looked at is no worker any more
        with contextlib.suppress(psutil.NoSuchProcess):  # a ZombieProcess is one as well
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def wait_for(process, what, seconds=200):
    """Until something is so, or the process has ended."""
    until = time.monotonic() + seconds
    while process.poll() is None and not what():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)


def lines_in(path):
    """Whole lines of a file, 0 where there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def study_file(study, folder):
    """The same study as a file."""
    described = {key: value for key, value in dataclasses.asdict(study).items() if value is not None}
    described["arms"] = [
        {"name": arm.name, "method": arm.method, "learning_rates": arm.learning_rates, **arm.fields}
        for arm in study.arms
    ]
    described["tasks"] = [{k: v for k, v in task.items() if v is not None} for task in described["tasks"]]
    file = folder / "study.yaml"
    file.write_text(json.dumps(described))  # JSON is YAML
    assert read_study(file) == study
    return file
