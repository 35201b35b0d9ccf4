"""Real processes that are sent real signals: what they leave, what they say, and where the same command ends."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lrlora.training import Interrupted, TrainConfig, train
from tests.training.test_run import config_for, weights

CHILD = """
import os, signal, sys, time
import lrlora.cli.train as verb
import lrlora.training.run as run, lrlora.training.trainer as trainer
from lrlora.cli import main
from transformers import Trainer, TrainerCallback

number, phase = int(sys.argv[1]), sys.argv[2]

def send(*_, **__):
    os.kill(os.getpid(), number)

class Sender(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if phase in ("step", "twice", "waiting") and state.global_step == 2:
            send()
            if phase == "twice":
                time.sleep(0.5)
                send()
            if phase == "waiting":
                print("in the step", file=sys.stderr, flush=True)
                time.sleep(60)
    def on_save(self, args, state, control, **kwargs):
        if phase == "saving" and state.global_step == 2:
            send()

def after(function):
    def sent(*arguments, **more):
        send()
        return function(*arguments, **more)
    return sent

if phase == "loading":
    run.load_task_for = after(run.load_task_for)
if phase == "evaluating":
    trainer.score = after(trainer.score)
if phase == "writing":
    run.RunFolder.save_adapter = after(run.RunFolder.save_adapter)
trained = run.train
verb.train = lambda config, **named: trained(config, callbacks=[Sender()], **named)
sys.exit(main(sys.argv[3:]))
"""


def words_of(config: TrainConfig) -> list[str]:
    """The command line of a run."""
    settings = config.settings()
    given = {name: value for name, value in settings.values.items() if value != settings.defaults[name]}
    return ["train", *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


def start(config: TrainConfig, number: int, phase: str) -> subprocess.Popen:
    """A process that sends itself a signal in a phase of its training."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", CHILD, str(int(number)), phase, *words_of(config)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stopped(config: TrainConfig, number: int, phase: str) -> tuple[int, str]:
    """Exit status and last line of such a process, which has printed no result."""
    process = start(config, number, phase)
    out, err = process.communicate(timeout=300)
    assert out == ""
    assert "Traceback" not in err, err
    said = [line for line in err.splitlines() if line.startswith("lrlora: ")]
    lines = [line for line in said if not line.startswith("lrlora: memory: about ")]
    assert len(lines) == 1 and err.splitlines()[-1] == lines[0], err
    return process.returncode, lines[0]


@pytest.fixture(scope="module")
def whole(tiny_encoder, tmp_path_factory) -> TrainConfig:
    """A run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    rows = [{"text": f"a {word} day {n}", "label": n % 2} for n, word in enumerate(["good", "bad"] * 20)]
    (folder / "days.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_for(tiny_encoder, folder / "days.jsonl", folder / "run", lora_dropout=0.1, save_steps=100)
    train(config)
    return config


def check_goes_on(config: TrainConfig, whole: TrainConfig) -> None:
    """The same command ends where the uninterrupted run ended."""
    out, before = Path(config.out or ""), Path(whole.out or "")
    train(config)
    resumed = weights(out)
    for name, value in weights(before).items():
        assert torch.equal(value, resumed[name]), name
    metrics, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (out, before))
    for name in ("steps", "loss", "accuracy"):
        assert metrics[name] == expected[name], name
    assert metrics["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-6)
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines() if '"loss"' in line]
    assert steps == sorted(set(steps)) and steps[-1] == 4


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_a_step_leaves_a_checkpoint_at_its_end(whole, tmp_path, number, status):
    config = replace(whole, out=str(tmp_path / "run"))
    code, said = stopped(config, number, "step")
    assert code == status
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-3"
    assert said == (f"lrlora: stopped by {number.name}; {checkpoint} is written; the same command goes on from it")
    assert not (tmp_path / "run" / ".lock").exists()
    check_goes_on(config, whole)


@pytest.mark.parametrize(
    ("phase", "left"),
    [
        ("loading", r"nothing was written to \S+run; the same command starts from the beginning"),
        ("saving", r"\S+checkpoint-3 is written; the same command goes on from it"),
        ("evaluating", r"\S+checkpoint-4 is written; the same command goes on from it"),
        ("writing", r"\S+checkpoint-4 is written; the same command goes on from it"),
    ],
)
def test_in_every_phase_it_says_what_is_there(whole, tmp_path, phase, left):
    # in the phase "saving" the regular checkpoint of the second step
    config = replace(whole, out=str(tmp_path / "run"), save_steps=2 if phase == "saving" else 100)
    code, said = stopped(config, signal.SIGTERM, phase)
    assert code == 143
    assert re.fullmatch(rf"lrlora: stopped by SIGTERM; {left}", said), said
    check_goes_on(config, whole)


def test_a_second_signal_ends_at_once_and_says_that_nothing_is_there(whole, tmp_path):
    config = replace(whole, out=str(tmp_path / "run"))
    code, said = stopped(config, signal.SIGTERM, "twice")
    assert code == 143
    assert said.endswith("run holds no checkpoint yet; the same command starts from the beginning")
    check_goes_on(config, whole)


def test_with_overwrite_it_says_that_the_same_command_starts_again(whole, tmp_path):
    config = replace(whole, out=str(tmp_path / "run"), overwrite=True)
    _, said = stopped(config, signal.SIGTERM, "step")
    assert said.endswith(
        "checkpoint-3 is written; the same command without --overwrite goes on from it, with it it starts from the "
        "beginning"
    )
    check_goes_on(replace(config, overwrite=False), whole)


def test_the_handlers_of_before_are_back(whole, tmp_path):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    train(replace(whole, out=str(tmp_path / "run")))
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_handler_of_the_host_program_is_left_alone(whole, tmp_path):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        from transformers import TrainerCallback

        class Sender(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                os.kill(os.getpid(), signal.SIGTERM)

        assert train(replace(whole, out=str(tmp_path / "run")), callbacks=[Sender()]).metrics["steps"] == 4
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM] * 4


def test_in_another_thread_it_trains_all_the_same(whole, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(replace(whole, out=str(tmp_path / "run")))))
    thread.start()
    thread.join()
    assert results[0].metrics["steps"] == 4


def test_in_python_it_is_a_keyboard_interrupt(whole, tmp_path):
    from transformers import TrainerCallback

    class Sender(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)

    config = replace(whole, out=str(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt, match=r"checkpoint-1 is written") as caught:
        train(config, callbacks=[Sender()])
    assert isinstance(caught.value, Interrupted) and caught.value.number == signal.SIGTERM
    check_goes_on(config, whole)


def test_two_at_once_one_is_refused(whole, tmp_path):
    config = replace(whole, out=str(tmp_path / "run"))
    process = start(config, 0, "waiting")
    try:
        assert process.stderr is not None
        assert any("in the step" in line for line in process.stderr)
        for again in (config, replace(config, overwrite=True), config.with_settings(r=4)):
            with pytest.raises(ValueError, match=r"another process is training in .*run; wait for it"):
                train(again)
    finally:
        process.kill()
        process.wait()
        process.communicate()
    check_goes_on(config, whole)
