"""One way to one number: a run, `lrlora evaluate` and a study say the same of the same model and rows."""

import math

import pytest
import torch

from lrlora.cli import main
from lrlora.data import DataSource, load_task
from lrlora.evaluation import score as score_module
from lrlora.evaluation.score import BATCH, score_task
from lrlora.export.compare import compare, run_config
from lrlora.saved import load_adapter
from lrlora.saved.tokens import load_tokenizer
from lrlora.training import TrainConfig, train
from tests.conftest import write_rows


def config_for(kind, base, folder, precision="fp32") -> TrainConfig:
    words = ["good", "bad", "fine", "poor", "long", "short"]
    texts = [" ".join(words[(i * k) % 6] for k in range(1, 2 + i % 5)) for i in range(75)]
    if kind == "causal":
        rows = [{"instruction": text, "output": words[i % 6] * (1 + i % 3)} for i, text in enumerate(texts)]
    else:
        rows = [{"text": text, "label": i % 3 if kind == "classification" else i / 7} for i, text in enumerate(texts)]
    return TrainConfig.of(
        model=str(base), data=str(write_rows(folder / "rows.jsonl", rows)), kind=kind, out=str(folder / "run"),
        max_steps=3, batch_size=BATCH, max_length=24, learning_rate=1e-2, r=2, precision=precision,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("classification", "fp32"), ("regression", "fp32"), ("causal", "fp32"), ("causal", "bf16")],
)
def test_training_evaluation_and_library_give_one_number(kind, precision, tiny_encoder, tiny_decoder, tmp_path):
    config = config_for(kind, tiny_decoder if kind == "causal" else tiny_encoder, tmp_path, precision)
    run = train(config)
    of_run = {name: run.metrics[name] for name in run.metrics if name in ("loss", "accuracy", "macro_f1", "pearson")}
    evaluated = compare(config.out, run_config(config.out), ["adapter"]).results["adapter"]
    assert "loss" in of_run and {name: evaluated[name] for name in of_run} == of_run
    model, tokenizer = load_adapter(config.out), load_tokenizer(f"{config.out}/adapter")
    task = load_task(DataSource(data=config.data, kind=kind))
    assert score_task(model, tokenizer, task, config.max_length, is_bf16=precision == "bf16") == evaluated


def test_a_causal_loss_is_a_mean_over_tokens(tiny_decoder, tmp_path):
    config = config_for("causal", tiny_decoder, tmp_path)
    train(config)
    model, tokenizer = load_adapter(config.out), load_tokenizer(f"{config.out}/adapter")
    task = load_task(DataSource(data=config.data, kind="causal"))
    found = [score_task(model, tokenizer, task, 24, batch_size=size)["loss"] for size in (1, 3, 100)]
    assert max(found) - min(found) < 1e-6 * found[0]


def test_the_mode_of_the_model_is_left_alone(tiny_encoder, tmp_path):
    config = config_for("classification", tiny_encoder, tmp_path)
    train(config)
    model, tokenizer = load_adapter(config.out), load_tokenizer(f"{config.out}/adapter")
    task = load_task(DataSource(data=config.data, kind="classification"))
    assert not model.training and math.isfinite(score_task(model.train(), tokenizer, task, 24)["loss"])
    assert model.training and torch.is_grad_enabled()


def test_as_many_rows_are_scored_at_once_as_the_flag_says(tiny_encoder, tmp_path, monkeypatch):
    config = config_for("classification", tiny_encoder, tmp_path)
    train(config)
    sizes, batches = [], score_module.batches

    def counted(*arguments):
        for rows, batch in batches(*arguments):
            sizes.append(len(rows))
            yield rows, batch

    monkeypatch.setattr(score_module, "batches", counted)
    flags = ["--data", str(config.data), "--eval_rows", "25", "--batch_size", "10", "--models", "adapter"]
    assert main(["evaluate", str(tmp_path / "run"), *flags]) == 0
    assert sizes == [10, 10, 5]
