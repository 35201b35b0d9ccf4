import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from safetensors.torch import load_file

from lrlora import InputError
from lrlora.saved import load_adapter
from lrlora.saved.checkpoints import last_checkpoint
from lrlora.training import TrainConfig, train
from lrlora.tuner import deltas
from tests.conftest import write_rows

ROW_OF_RANKS = {
    "layer", "block", "kind", "module", "stable_rank", "stable_rank_ba", "effective_rank", "numerical_rank",
    "constant_share", "rms_over_tau", "outside_grid", "relative_norm", "expert",
    "stable_rank_initial", "c_change", "gate",
}  # fmt: skip


def config_for(model: Path, data: Path, out: Path, **fields) -> TrainConfig:
    """Four quick steps."""
    return TrainConfig.of(
        **{
            "model": str(model), "data": str(data), "out": str(out), "max_steps": 4, "batch_size": 4, "save_steps": 1,
            "r": 2, **fields,
        }
    )  # fmt: skip


def run_killed_after(steps: int, config: TrainConfig) -> None:
    """A training in a process of its own, which is killed in the step after so many."""
    child = f"""
import os, signal
from transformers import TrainerCallback
from lrlora.training import TrainConfig, train

class Kill(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == {steps}:
            os.kill(os.getpid(), signal.SIGKILL)

train(TrainConfig.of(**{config.settings().values!r}), callbacks=[Kill()])
"""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    ended = subprocess.run([sys.executable, "-c", child], env=environment, capture_output=True, timeout=300)
    assert ended.returncode == -signal.SIGKILL


def weights(out: Path) -> dict[str, torch.Tensor]:
    """The trained adapter of a run folder."""
    return load_file(out / "adapter" / "adapter_model.safetensors")


def test_a_run_folder_holds_what_it_promises(tiny_encoder, sentences, tmp_path):
    out = tmp_path / "run"
    result = train(config_for(tiny_encoder, sentences, out, lora_dropout=0.1, gradient_accumulation=2))
    written = {path.name for path in out.iterdir()}
    assert written == {
        "adapter",
        "checkpoints",
        "config.json",
        "log.jsonl",
        "metrics.json",
        "ranks.json",
        "ranks.jsonl",
        "ranks.png",
        "SHA256SUMS",
    }
    rows = json.loads((out / "ranks.json").read_text())
    assert len(rows) == 13
    assert set(rows[0]) == ROW_OF_RANKS
    assert {row["kind"] for row in rows} == {"attention", "mlp", "other"}
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["seed"] == 0
    assert config["versions"]["torch"] == torch.__version__
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["steps"] == 4
    assert 0 <= metrics["accuracy"] <= 1
    assert metrics["accuracy"] == result.metrics["accuracy"]
    assert (out / "ranks.png").read_bytes().startswith(b"\x89PNG")
    again = AutoPeftModelForSequenceClassification.from_pretrained(out / "adapter", num_labels=2)
    assert len(deltas(again)) == 13


@pytest.mark.parametrize("labels", ["classes", "numbers"])
def test_the_loss_of_accumulated_batches_is_that_of_one(tiny_encoder, sentences, tmp_path, labels):
    rows = [json.loads(line) for line in (sentences / "train.jsonl").read_text().splitlines()]
    data = tmp_path / "train.jsonl"
    write_rows(data, [{**row, "label": row["label"] if labels == "classes" else 0.5 + row["label"]} for row in rows])
    config = json.loads((tiny_encoder / "config.json").read_text())
    folder = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    config.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    (folder / "config.json").write_text(json.dumps(config))
    losses = []
    for batch, accumulation in ((8, 1), (2, 4)):
        fields = {"batch_size": batch, "gradient_accumulation": accumulation, "max_steps": 2, "learning_rate": 1e-6}
        out = tmp_path / f"of_{batch}"
        train(config_for(folder, data, out, **fields))
        losses.append(json.loads((out / "metrics.json").read_text())["train_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_finished_run_is_shown_and_not_trained_again(tiny_encoder, sentences, tmp_path):
    config = config_for(tiny_encoder, sentences, tmp_path / "run")
    train(config)
    before = (tmp_path / "run" / "metrics.json").stat().st_mtime_ns
    train(config)
    assert (tmp_path / "run" / "metrics.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"other settings \(r 2 -> 4\)"):
        train(config.with_settings(r=4))
    assert train(config.with_settings(r=4, overwrite=True)).metrics["trainable_parameters"] > 0


def test_a_start_that_failed_leaves_nothing_in_the_way(tiny_encoder, sentences, tmp_path):
    config = config_for(tiny_encoder, sentences, tmp_path / "run")
    train(config)
    kept = (tmp_path / "run" / "metrics.json").read_text()
    with pytest.raises(InputError, match="no such file"):
        train(replace(config, data="./nowhere.jsonl", overwrite=True))
    assert (tmp_path / "run" / "metrics.json").read_text() == kept
    with pytest.raises(InputError, match="no such file"):
        train(replace(config, data="./nowhere.jsonl", out=str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()


def test_a_folder_with_other_files_is_not_touched(tiny_encoder, sentences, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError):
            train(config_for(tiny_encoder, sentences, tmp_path / "mine", overwrite=overwrite))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_lora_beside_it(tiny_encoder, sentences, tmp_path):
    result = train(config_for(tiny_encoder, sentences, tmp_path / "run", compare=True))
    assert result.compared is not None
    assert result.compared.metrics["method"] == "lora"
    lora, ours = (path / "adapter" / "adapter_config.json" for path in (tmp_path / "run" / "lora", tmp_path / "run"))
    lora, ours = json.loads(lora.read_text()), json.loads(ours.read_text())
    assert (lora["r"], lora["lora_alpha"], lora["peft_type"]) == (ours["r"], 2 * ours["r"], "LORA")
    assert sorted(lora["target_modules"]) == sorted(ours["target_modules"])


def test_regression(tiny_encoder, tmp_path):
    rows = [{"sentence1": f"a {n}", "sentence2": f"b {n}", "label": n / 4} for n in range(16)]
    write_rows(tmp_path / "stsb_train.jsonl", rows)
    write_rows(tmp_path / "stsb_dev.jsonl", rows[:6])
    config = TrainConfig.of(
        model=str(tiny_encoder), data=str(tmp_path), task="stsb", out=str(tmp_path / "run"), epochs=1
    )
    metrics = train(config).metrics
    assert {"pearson", "spearman"} <= set(metrics)
    assert -1 <= metrics["pearson"] <= 1


def test_causal_language_modelling(tiny_decoder, tmp_path):
    rows = [{"instruction": f"say {n}", "output": f"it is {n}"} for n in range(24)]
    file = write_rows(tmp_path / "say.jsonl", rows)
    result = train(config_for(tiny_decoder, file, tmp_path / "run", gradient_checkpointing=True, share="type"))
    assert result.metrics["metric"] == "loss"
    assert len(result.ranks) == 14
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "adapter")
    assert len({id(delta.theta) for *_, delta in deltas(again)}) == 7


@pytest.mark.parametrize("tau", [0.05, "auto"])
def test_killed_in_its_third_step_it_ends_where_an_uninterrupted_run_ends(tiny_encoder, sentences, tmp_path, tau):
    fields = {"tau": tau, "tau_warmup_steps": 2, "tau_follow": 0.9, "lora_dropout": 0.1}
    whole = config_for(tiny_encoder, sentences, tmp_path / "whole", **fields)
    train(whole)
    killed = replace(whole, out=str(tmp_path / "killed"))
    run_killed_after(2, killed)
    out = Path(killed.out or "")
    assert not (out / "adapter").exists()
    assert last_checkpoint(out / "checkpoints") == out / "checkpoints" / "checkpoint-2"
    assert train(killed).metrics["was_resumed"]
    resumed = weights(out)
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, resumed[name]), name
    if tau == "auto":
        assert all(value.isfinite() for name, value in resumed.items() if name.endswith(".tau"))


def test_a_checkpoint_cut_short_is_left_behind(tiny_encoder, sentences, tmp_path):
    config = config_for(tiny_encoder, sentences, tmp_path / "run")
    train(config)
    checkpoints = tmp_path / "run" / "checkpoints"
    file = checkpoints / "checkpoint-4" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert last_checkpoint(checkpoints) == checkpoints / "checkpoint-3"
    assert not (checkpoints / "checkpoint-4").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tiny_encoder, tmp_path):
    rows = [{"sentence": f"a {n}", "label": 1e38 if n == 7 else n / 4} for n in range(24)]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "dev.jsonl", rows[:4])
    out = tmp_path / "run"
    with pytest.raises(InputError, match=r"NaN or inf at step \d; .* last good checkpoint is .*checkpoint-\d"):
        train(config_for(tiny_encoder, tmp_path, out, kind="regression", max_steps=6))
    checkpoint = last_checkpoint(out / "checkpoints")
    assert checkpoint is not None
    saved = load_file(checkpoint / "adapter_model.safetensors")
    assert all(value.isfinite().all() for value in saved.values())
    assert not (out / "metrics.json").exists()


def test_an_adapter_is_loaded_with_its_base(tiny_encoder, sentences, tmp_path):
    train(config_for(tiny_encoder, sentences, tmp_path / "run"))
    model = load_adapter(str(tmp_path / "run"))
    assert not model.training
    assert model.num_labels == 2
    with pytest.raises(InputError, match="no adapter in"):
        load_adapter(str(tmp_path))
    file = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_adapter(str(tmp_path / "run"))
