"""`lrlora train` in two processes that torchrun has started: one speaks, all end together, and a signal stops both."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "lrlora"]


def start(*words: str) -> subprocess.Popen[str]:
    """The command in two processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def ours(err: str) -> list[str]:
    """The lines that the command has said."""
    said = [line for line in err.splitlines() if line.startswith(("lrlora: ", "warning: "))]
    return [line for line in said if not line.startswith("lrlora: memory: about ")]


def flags(model: Path, data: Path, out: Path, steps: int = 2) -> list[str]:
    """A few steps; no --r, which torchrun takes for an abbreviation of its own."""
    values = {"model": model, "data": data, "out": out, "max_steps": steps, "batch_size": 2}
    return ["train", *(word for name, value in values.items() for word in (f"--{name}", str(value)))]


def test_there_is_one_result_and_one_warning(tiny_encoder, sentences, tmp_path):
    out, err = start(*flags(tiny_encoder, sentences, tmp_path / "run"), "--json", "--max_length", "6").communicate(
        timeout=300
    )
    assert json.loads(out)["metrics"]["steps"] == 2, err
    cut = [line for line in ours(err) if "6 tokens" in line or "cut" in line]
    assert len(cut) == len(set(cut)) >= 1, err
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2]
    out, err = start(*flags(tiny_encoder, sentences, tmp_path / "run"), "--max_length", "6").communicate(timeout=300)
    assert out.count("held out") == 1
    assert err.count("shown again") == 1


@pytest.mark.parametrize("how", ["misspelt", "rows", "folder", "verb"])
def test_a_refusal_is_said_once_and_ends_all(tiny_encoder, sentences, tmp_path, how):
    words = flags(tiny_encoder, sentences, tmp_path / "run")
    if how == "misspelt":
        words, said = [*words, "--learnin_rate", "1"], "did you mean --learning_rate?"
    elif how == "rows":
        (sentences / "train.jsonl").write_text('{"sentence": "alone"}\n' * 20)
        said = "label"
    elif how == "folder":  # met by the first process alone
        words, said = flags(tiny_encoder, sentences, Path("/proc/nowhere/run")), "cannot make the folder"
    else:
        words, said = ["merge", str(tmp_path), "--out", str(tmp_path / "merged")], "runs in one process"
    started = time.monotonic()
    process = start(*words)
    out, err = process.communicate(timeout=300)
    assert process.returncode != 0 and out == ""
    assert [line for line in ours(err) if line.startswith("lrlora: ")] == [next(s for s in ours(err) if said in s)], err
    assert "exitcode  : 2 " in err and "rank      : 0 " in err
    # gloo would wait for half an hour
    assert time.monotonic() - started < 200


@pytest.mark.parametrize("to", ["parent", "each", "group"])
def test_a_signal_stops_both_with_one_checkpoint(tiny_encoder, sentences, tmp_path, to):
    words = [*flags(tiny_encoder, sentences, tmp_path / "run", steps=2000), "--rank_steps", "0", "--save_steps", "20"]
    process = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    first = tmp_path / "run" / "checkpoints" / "checkpoint-20" / "trainer_state.json"
    until = time.monotonic() + 200
    while not first.exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.1)
    if to == "group":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        for pid in [process.pid] if to == "parent" else children(process.pid):
            os.kill(pid, signal.SIGTERM)
    out, err = process.communicate(timeout=200)
    assert out == "" and process.returncode != 0
    said = [line for line in ours(err) if line.startswith("lrlora: ")]
    assert len(said) == 1 and said[0].startswith("lrlora: stopped by SIGTERM; "), err
    checkpoint = Path(said[0].split("; ")[1].removesuffix(" is written"))
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] < 2000
    assert (checkpoint / "rng_state_0.pth").exists() and (checkpoint / "rng_state_1.pth").exists()


def children(parent: int) -> list[int]:
    """The processes that a process has started."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
