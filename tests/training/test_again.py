"""The same command again: what it finds is shown, goes on, or is refused, by what the run has read."""

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lrlora import InputError
from lrlora.cli import main
from lrlora.training import TrainConfig, train
from tests.training.cases import contents


def test_a_finished_run_says_that_it_is_shown_again(again, capsys):
    out = Path(again.out or "")
    os.utime(out / "metrics.json", (0, time.mktime((2026, 3, 4, 5, 6, 0, 0, 0, -1))))
    train(again)
    said = capsys.readouterr().err.splitlines()
    assert f"lrlora: {out} finished before, on 2026-03-04 at 05:06; shown again" in said


def changed_rows(config: TrainConfig, tmp_path: Path) -> TrainConfig:
    """The run with data of its own, which are then changed in one letter."""
    file = Path(shutil.copy(str(config.data), tmp_path / "days.jsonl"))
    config = replace(config, data=str(file), out=str(tmp_path / "mine"), compare=False)
    train(config)
    file.write_text(file.read_text().replace('good day 2"', 'fine day 2"'))
    return config


def test_the_same_command_on_other_rows_is_refused_like_other_settings(finished, tmp_path, capsys):
    config = changed_rows(finished, tmp_path)
    before = contents(tmp_path / "mine")
    with pytest.raises(InputError, match=r"mine holds a run with other data \(the rows of .*days\.jsonl changed since"):
        train(config)
    assert contents(tmp_path / "mine") == before
    assert main(["evaluate", str(tmp_path / "mine"), "--models", "adapter"]) == 0
    assert "days.jsonl have changed since" in capsys.readouterr().err
    assert train(replace(config, overwrite=True)).metrics["steps"] == 4
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "mine"), "--models", "adapter", "--eval_rows", "3"]) == 0
    assert "changed" not in capsys.readouterr().err


def test_a_killed_run_does_not_go_on_with_other_rows(finished, tmp_path):
    config = changed_rows(finished, tmp_path)
    (tmp_path / "mine" / "metrics.json").unlink()
    with pytest.raises(InputError, match="changed since"):
        train(config)
    # where nothing was trained it starts afresh
    shutil.rmtree(tmp_path / "mine" / "checkpoints")
    assert not train(config).metrics["was_resumed"]


def test_another_base_in_the_same_place_is_another_run(finished, tmp_path):
    base = shutil.copytree(str(finished.model), tmp_path / "base")
    config = replace(finished, model=str(base), out=str(tmp_path / "run"), compare=False)
    train(config)
    weights = base / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(InputError, match=r"the weights of the base model of .*base changed since"):
        train(config)


def test_rows_that_are_gone_do_not_hide_a_finished_run(finished, tmp_path, capsys):
    config = changed_rows(finished, tmp_path)
    Path(config.data or "").unlink()
    assert train(config).metrics["steps"] == 4
    assert "has changed since is not known: no such file" in capsys.readouterr().err


def test_paths_are_whole_in_what_is_written(finished, tmp_path, monkeypatch):
    shutil.copytree(str(finished.model), tmp_path / "base")
    shutil.copy(str(finished.data), tmp_path / "days.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = replace(finished, model="base", data="~/days.jsonl", eval_data="./days.jsonl", out="run", compare=False)
    assert train(config).folder == Path("run")
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    wanted = {"model": "base", "data": "days.jsonl", "eval_data": "days.jsonl", "out": "run"}
    assert {name: settings[name] for name in wanted} == {name: str(tmp_path / p) for name, p in wanted.items()}
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["source"].startswith(str(tmp_path))
    adapter = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(tmp_path / "base")


def test_a_name_of_the_hub_stays_a_name():
    config = TrainConfig.of(model="roberta-base", data="nyu-mll/glue").with_absolute_paths()
    assert (config.model, config.data) == ("roberta-base", "nyu-mll/glue")


def of_the_first_version(config: TrainConfig) -> None:
    """Let the run look as the first version wrote it: relative paths, and not what it has read."""
    file = Path(config.out or "") / "config.json"
    described = json.loads(file.read_text())
    settings = described["settings"]
    del described["inputs"], described["format"]
    for name in ("split_seed", "eval_data", "pooling", "bias", "rank_pattern", "carrier"):
        del settings[name]
    settings.update(tau=str(settings["tau"]), verbose=False, json=True, debug=False)
    for name in ("model", "data", "out"):
        described["settings"][name] = os.path.relpath(described["settings"][name])
    file.write_text(json.dumps(described))


def test_a_run_of_the_first_version_is_shown_and_goes_on(again, capsys):
    of_the_first_version(again)
    train(again)
    assert "whether its rows or its base model have changed since is not known" in capsys.readouterr().err
    out = Path(again.out or "")
    (out / "metrics.json").unlink()
    assert train(again).metrics["was_resumed"]
    assert "was begun by an earlier version" in capsys.readouterr().err
    assert not json.loads((out / "config.json").read_text())["inputs"]
    with pytest.raises(InputError, match=r"split_seed 0 -> 1"):
        train(replace(again, split_seed=1))
    with pytest.raises(InputError, match=r"bias 'none' -> 'all'"):
        train(again.with_settings(bias="all"))
    with pytest.raises(InputError, match=r"tau 0.05 -> 0.1"):
        train(again.with_settings(tau=0.1))


def test_a_run_that_ended_before_its_results_trains_no_further_step(again):
    out = Path(again.out or "")
    before = json.loads((out / "metrics.json").read_text())
    (out / "metrics.json").unlink()
    after = train(again).metrics
    assert after["steps"] == 4
    assert {k: after[k] for k in ("loss", "accuracy", "train_loss")} == {
        k: before[k] for k in ("loss", "accuracy", "train_loss")
    }


def test_a_comparison_may_come_later(finished, tmp_path):
    config = replace(finished, out=str(tmp_path / "run"), compare=False)
    train(config)
    assert train(replace(config, compare=True)).compared is not None


def test_the_log_holds_losses_and_both_rates(finished):
    out = Path(finished.out or "")
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    assert [line["step"] for line in losses] == [1, 2, 3, 4]
    for line in losses:
        assert set(line) == {"step", "epoch", "loss", "learning_rate", "c_learning_rate", "grad_norm"}
        assert line["c_learning_rate"] == pytest.approx(10 * line["learning_rate"])
        assert line["loss"] > 0 and line["grad_norm"] > 0
    evaluation = lines[-1]
    metrics = json.loads((out / "metrics.json").read_text())
    assert (evaluation["eval_loss"], evaluation["eval_accuracy"]) == (metrics["loss"], metrics["accuracy"])
    assert metrics["train_loss"] == pytest.approx(sum(line["loss"] for line in losses) / 4)
    lora = (out / "lora" / "log.jsonl").read_text()
    assert '"loss"' in lora and "c_learning_rate" not in lora


def test_between_checkpoints_a_loss_is_a_mean(finished, tmp_path):
    config = replace(finished, out=str(tmp_path / "run"), compare=False, save_steps=3)
    train(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    every = [json.loads(line) for line in (Path(finished.out or "") / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [3, 4]
    assert lines[0]["loss"] == pytest.approx(sum(line["loss"] for line in every[:3]) / 3, rel=1e-5)


def test_a_finished_run_is_extended(again):
    longer = replace(again, max_steps=7, compare=False, lr_scheduler="constant", extend=True)
    constant = replace(longer, max_steps=4, extend=False, out=f"{again.out}-constant")
    train(constant)
    here = replace(longer, out=constant.out)
    with pytest.raises(InputError, match=r"other settings \(max_steps 4 -> 7\)"):
        train(replace(here, extend=False))
    result = train(here)
    assert result.metrics["steps"] == 7 and result.metrics["was_resumed"]
    whole = replace(longer, out=f"{again.out}-whole", extend=False)
    train(whole)
    kept = [load_file(Path(each.out or "") / "adapter" / "adapter_model.safetensors") for each in (here, whole)]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[1])
    # finished: shown again, extended or not, and never made shorter
    assert train(replace(here, extend=False)).metrics == result.metrics == train(here).metrics
    with pytest.raises(InputError, match="other settings"):
        train(replace(here, max_steps=5))
    with pytest.raises(InputError, match="pass one of them"):
        replace(here, overwrite=True)
