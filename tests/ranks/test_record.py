"""Ranks while training: whole lines, no step twice, within their fraction of the time."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import peft
import pytest
import torch
import transformers

import lrlora
from lrlora.files import read_json_lines
from lrlora.ranks.record import read_records
from lrlora.training import TrainConfig, train
from lrlora.tuner import deltas
from tests.conftest import tiny_bert, token_ids
from tests.ranks.adapted import adapted


def trainer_for(model, out, steps=6, resume=False, **fields) -> transformers.Trainer:
    rows = [{"input_ids": token_ids(1)[0], "labels": n % 3} for n in range(8)]
    settings: dict = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_steps": 2, **fields}
    args = transformers.TrainingArguments(
        output_dir=str(out), max_steps=steps, per_device_train_batch_size=4, dataloader_pin_memory=False, **settings
    )
    return transformers.Trainer(model=model, args=args, train_dataset=rows)


def steps_in(folder) -> list[int]:
    return [record["step"] for record in read_records(folder)]


def test_every_so_many_steps_and_at_the_end(tmp_path):
    trainer = trainer_for(adapted(), tmp_path, steps=5)
    logged: list[dict] = []
    trainer.add_callback(lrlora.RankCallback(every=2, log=logged.append, log_layers=True))
    trainer.train()
    assert steps_in(tmp_path) == [2, 4, 5]
    first = read_records(tmp_path)[0]
    assert first["is_quick"] is False and len(first["layers"]) == 9 and first["elapsed_s"] > 0
    rows = first["layers"]
    attention = [row.stable_rank for row in rows if row.kind == "attention"]
    assert logged[0]["ranks/attention/stable_rank"] == pytest.approx(sum(attention) / len(attention))
    assert logged[0][f"ranks/{rows[0].layer}"] == rows[0].stable_rank


def test_the_trackers_of_the_trainer_get_the_means(tmp_path):
    trainer = trainer_for(adapted(), tmp_path, steps=2)
    trainer.add_callback(lrlora.RankCallback(every=1, log=trainer.log))
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "ranks/mlp/stable_rank" in entry]
    assert [entry["step"] for entry in entries] == [1, 2]


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_the_trainer_logs_its_losses_as_without_it(tmp_path, every, strategy):
    def losses(with_ranks: bool) -> dict[int, float]:
        trainer = trainer_for(
            adapted(), tmp_path, steps=6, logging_steps=2, logging_strategy=strategy, logging_first_step=True
        )
        if with_ranks:
            trainer.add_callback(lrlora.RankCallback(every=every, log=trainer.log))
        trainer.train()
        history = trainer.state.log_history
        ranks = [entry["step"] for entry in history if "ranks/mlp/stable_rank" in entry]
        assert ranks == (sorted({*range(every, 7, every), 6}) if with_ranks else [])
        return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}

    alone = losses(False)
    assert set(alone) == {1, 2, 4, 6}
    assert losses(True) == alone


def test_ranks_and_losses_are_logged_whatever_the_order_of_the_callbacks(tmp_path):
    trainer = trainer_for(adapted(tau="auto", tau_warmup_steps=1), tmp_path, steps=4, logging_steps=2)
    callback = lrlora.RankCallback(every=2, log=trainer.log)
    trainer.callback_handler.callbacks.insert(0, callback)
    trainer.add_callback(lrlora.TauCallback())
    trainer.train()
    history = trainer.state.log_history
    assert [entry["step"] for entry in history if "loss" in entry] == [2, 4]
    assert [entry["step"] for entry in history if "ranks/mlp/stable_rank" in entry] == [2, 4]
    assert all(delta.tau.isfinite() for *_, delta in deltas(trainer.model))


def test_a_resumed_training_goes_on_without_a_step_twice(tmp_path):
    trainer = trainer_for(adapted(), tmp_path, steps=6)
    trainer.add_callback(lrlora.RankCallback(every=1))
    trainer.train()
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5, 6]
    whole = [record["layers"] for record in read_records(tmp_path)]
    file = tmp_path / "ranks.jsonl"
    # killed while writing step 6, with a checkpoint of step 4
    file.write_bytes(file.read_bytes()[:-100])
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5]
    again = trainer_for(adapted(), tmp_path, steps=6)
    again.add_callback(lrlora.RankCallback(every=1))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert [record["layers"] for record in read_records(tmp_path)] == whole
    # and one that starts anew does not carry the other's records
    anew = trainer_for(adapted(), tmp_path, steps=2)
    anew.add_callback(lrlora.RankCallback(every=1))
    anew.train()
    assert steps_in(tmp_path) == [1, 2]


def test_a_process_killed_while_it_records_is_resumed(tmp_path, tiny_encoder, sentences):
    config = TrainConfig.of(
        model=str(tiny_encoder), data=str(sentences), out=str(tmp_path / "run"), max_steps=4, batch_size=4,
        save_steps=1, rank_steps=1, r=2,
    )  # fmt: skip
    child = f"""
import os, signal
from lrlora import files
from lrlora.ranks import record
from lrlora.training import TrainConfig, train

def die_halfway(path, line):
    if '"step": 3' in line:
        with path.open("a") as file:
            file.write(line[: len(line) // 2])
            file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    files.append_line(path, line)

record.append_line = die_halfway
train(TrainConfig.of(**{config.settings().values!r}))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    ended = subprocess.run([sys.executable, "-c", child], env=environment, capture_output=True, timeout=300)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert steps_in(tmp_path / "run") == [1, 2]
    assert train(replace(config, rank_steps=2)).metrics["was_resumed"]
    assert steps_in(tmp_path / "run") == [1, 2, 4]
    assert len(read_json_lines(tmp_path / "run" / "ranks.jsonl")) == 3


def test_a_broken_line_in_the_middle_is_no_half_written_one(tmp_path):
    (tmp_path / "ranks.jsonl").write_text('{"step": 1, "layers": []}\nhello\n{"step": 2, "layers": []}\n')
    with pytest.raises(lrlora.InputError, match="line 2"):
        read_records(tmp_path)


def test_left_alone_it_keeps_within_its_share_of_the_time(tmp_path):
    callback = lrlora.RankCallback()
    trainer = trainer_for(adapted(), tmp_path, steps=40)
    trainer.add_callback(callback)
    # steps that take their time, so that there is some to share
    trainer.add_callback(_Slow())
    trainer.train()
    steps = steps_in(tmp_path)
    assert steps[-1] == 40 and len(steps) == len(set(steps))
    # one record at the end is always made, and the estimate comes first
    spent = [record["seconds"] for record in read_records(tmp_path)]
    assert callback.seconds_spent - spent[-1] <= 0.02 * trainer.state.log_history[-1]["train_runtime"] + 0.05


class _Slow(transformers.TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs) -> None:
        import time

        time.sleep(0.1)


def test_only_the_first_process_writes_and_a_model_without_lrlora_is_said_once(tmp_path, caplog):
    callback = lrlora.RankCallback(every=1)
    trainer = trainer_for(adapted(), tmp_path, steps=2)
    trainer.add_callback(callback)
    trainer.state.is_world_process_zero = False
    state = replace(trainer.state, is_world_process_zero=False)
    callback.on_train_begin(trainer.args, state, trainer.control, model=trainer.model)
    callback.on_step_end(trainer.args, replace(state, global_step=1, max_steps=2), trainer.control, model=trainer.model)
    assert not (tmp_path / "ranks.jsonl").exists()
    lora = peft.get_peft_model(tiny_bert(), peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    other = trainer_for(lora, tmp_path, steps=2)
    other.add_callback(lrlora.RankCallback(every=1))
    other.train()
    assert caplog.text.count("no LR-LoRA layer") == 1


def test_a_loop_of_ones_own(tmp_path):
    model = adapted()
    for step in (10, 20):
        rows = lrlora.record_ranks(model, step, tmp_path, is_quick=True)
    records = read_records(tmp_path)
    assert [(r["step"], r["is_quick"]) for r in records] == [(10, True), (20, True)]
    assert records[1]["layers"] == rows
    assert all(json.loads(line)["layers"] for line in (tmp_path / "ranks.jsonl").read_text().splitlines())


def test_every_must_be_a_number_of_steps():
    with pytest.raises(lrlora.InputError, match="every must be at least 1, got 0"):
        lrlora.RankCallback(every=0)
