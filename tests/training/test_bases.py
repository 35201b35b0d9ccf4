"""Bases in other precisions and quantised, through the command line: trained on, and loaded again as they were."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lrlora.cli import main
from lrlora.data import DataSource, load_task
from lrlora.data.embedded import news_articles
from lrlora.evaluation.score import score_task
from lrlora.saved.load import load_adapter, load_base
from lrlora.saved.tokens import load_tokenizer
from lrlora.tuner import deltas
from tests.cli.commands import match, quick, run
from tests.conftest import write_rows
from tests.training.bases import QUIET, WAYS, days, decoder, need, sums

pytestmark = QUIET

HELD = {
    "bf16": ("Linear", torch.bfloat16, torch.bfloat16),
    "fp16": ("Linear", torch.float16, torch.float16),
    "auto": ("Linear", torch.float32, torch.float32),
    "bnb-4bit": ("Linear4bit", torch.uint8, torch.float32),
    "qlora": ("Linear4bit", torch.uint8, torch.bfloat16),
    "bnb-8bit": ("Linear8bitLt", torch.int8, torch.float32),
    "torchao-int8": ("Linear", torch.float32, torch.float32),
}
"""What a linear layer is, the type of its weight, and that of the embeddings."""


@pytest.fixture(scope="module")
def base(tmp_path_factory, embedded_encoder) -> Path:
    return decoder(tmp_path_factory.mktemp("base") / "base", embedded_encoder)


@pytest.mark.parametrize("kind", ["causal", "classification"])
@pytest.mark.parametrize("way", WAYS)
def test_it_is_trained_on_and_scored_merged_and_exported_as_it_was(base, tmp_path, capsys, way, kind):
    need(way)
    rows = (sums if kind == "causal" else days)(tmp_path / "rows.jsonl")
    folder = tmp_path / "run"
    status, _, err = run(capsys, *quick(base, rows, folder, *WAYS[way], "--json"))
    assert status == 0, err
    match(r"lrlora: memory: about \S+ [MG]B: base \S+ MB in .*assuming 16 rows of \d+ tokens", err)
    measured = json.loads((folder / "metrics.json").read_text())

    models = ["base", "adapter", "merged", "exported"]
    status, out, err = run(capsys, "evaluate", str(folder), "--json", "--models", *models)
    assert status == 0, err
    scored = json.loads(out)["results"]
    assert scored["adapter"]["loss"] == measured["loss"]
    assert scored["base"]["loss"] != measured["loss"]
    assert scored["exported"]["loss"] == pytest.approx(measured["loss"], rel=1e-3)
    assert scored["merged"]["loss"] == pytest.approx(measured["loss"], rel=0.03)

    held = load_adapter(str(folder))
    module, weight, embedding = HELD[way]
    layer = deltas(held)[0].layer.get_base_layer()
    assert (type(layer).__name__, layer.weight.dtype) == (module, weight)
    assert (type(layer.weight).__name__ == "Int8Tensor") == (way == "torchao-int8")
    assert held.get_input_embeddings().weight.dtype == embedding
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    # nothing of the head was rounded when it was put on the base again
    own = {name.removeprefix("base_model.model."): p for name, p in held.named_parameters()}
    for name, value in saved.items():
        if name.endswith("score.weight"):
            assert torch.equal(own["score.modules_to_save.default.weight"], value)

    # moved out of its run, an adapter still says what it was trained on
    alone = tmp_path / "alone"
    (folder / "adapter").rename(alone)
    again = load_adapter(str(alone))
    assert type(deltas(again)[0].layer.get_base_layer()).__name__ == module
    assert (alone / "base.json").exists()
    alone.rename(folder / "adapter")

    status, out, err = run(capsys, "merge", str(folder), "--out", str(tmp_path / "merged"), "--json")
    assert status == 0, err
    is_quantised = "--quantization" in WAYS[way]
    assert ("is merged into its full weights" in err) == is_quantised
    assert (json.loads(out)["quantization_error"] is not None) == is_quantised
    auto = AutoModelForCausalLM if kind == "causal" else AutoModelForSequenceClassification
    merged = auto.from_pretrained(tmp_path / "merged", dtype="auto")
    full = dict(AutoModelForCausalLM.from_pretrained(base).named_parameters())
    name = "model.embed_tokens.weight"
    assert torch.equal(dict(merged.named_parameters())[name], full[name])
    assert main(["export", str(folder), "--out", str(tmp_path / "lora")]) == 0


CHILD = """
import os, signal, sys
import lrlora.cli.train as verb
from lrlora.cli import main
from transformers import TrainerCallback

class Killed(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

trained = verb.train
verb.train = lambda config, **named: trained(config, callbacks=[Killed()], **named)
main(sys.argv[1:])
"""


def test_a_killed_run_on_a_quantised_base_ends_where_an_uninterrupted_one_ends(base, tmp_path, capsys):
    need("bnb-4bit")
    rows = sums(tmp_path / "rows.jsonl")
    more = ("--quantization", "bnb-4bit", "--max_steps", "5", "--save_steps", "2", "--lora_dropout", "0.1")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(capsys, *quick(base, rows, whole, *more))[0] == 0
    words = quick(base, rows, killed, *more)
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", CHILD, *words], env=environment, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert [folder.name for folder in (killed / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert run(capsys, *words)[0] == 0
    before, after = (json.loads((folder / "metrics.json").read_text()) for folder in (whole, killed))
    assert (after["was_resumed"], after["loss"]) == (True, before["loss"])
    expected = load_file(whole / "adapter" / "adapter_model.safetensors")
    for name, value in load_file(killed / "adapter" / "adapter_model.safetensors").items():
        assert torch.equal(value, expected[name]), name


def test_gradient_checkpointing_on_a_quantised_base_gives_the_same_adapter(base, tmp_path, capsys):
    need("bnb-4bit")
    rows, flags = sums(tmp_path / "rows.jsonl"), WAYS["qlora"]
    for name, more in (("kept", ()), ("again", ("--gradient_checkpointing", "True"))):
        status, _, err = run(capsys, *quick(base, rows, tmp_path / name, *flags, *more))
        assert status == 0, err
    kept = load_file(tmp_path / "kept" / "adapter" / "adapter_model.safetensors")
    again = load_file(tmp_path / "again" / "adapter" / "adapter_model.safetensors")
    assert any(value.abs().max() > 0 for name, value in kept.items() if name.endswith(".B"))
    for name, value in kept.items():
        torch.testing.assert_close(again[name], value, rtol=1e-4, atol=1e-6)


def test_what_is_trained_whole_is_float32_and_biases_in_bfloat16_are_refused(base, embedded_encoder, tmp_path, capsys):
    rows = days(tmp_path / "rows.jsonl")
    more = ("--dtype", "bfloat16", "--modules_to_save", "norm", "--target_modules", "q_proj")
    assert run(capsys, *quick(base, rows, tmp_path / "run", *more))[0] == 0
    model = load_adapter(str(tmp_path / "run"))
    whole = {name: p.dtype for name, p in model.named_parameters() if "modules_to_save" in name}
    # the head, and five norms, which PEFT finds by the end of their name
    assert set(whole.values()) == {torch.float32} and len(whole) == 6
    seen = []
    inner = model.get_base_model().model
    inner.register_forward_hook(lambda module, given, output: seen.append(output.last_hidden_state.dtype))
    logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert (seen, logits.dtype) == ([torch.bfloat16], torch.float32)
    status, _, err = run(capsys, *quick(embedded_encoder, rows, tmp_path / "b", "--dtype", "bfloat16", "--bias", "all"))
    assert status == 2
    match(r"would be trained in bfloat16 .*--dtype float32, or leave out what trains it", err)


@pytest.mark.parametrize("way", ["bf16", "qlora"])
def test_a_pretrained_decoder_keeps_what_it_knows(embedded_decoder, tmp_path, capsys, way, unchecked_shapes):
    need(way)
    texts = news_articles(24)
    rows = write_rows(tmp_path / "news.jsonl", [{"text": text} for text in texts])
    few = ("--target_modules", "q_proj", "--layers_to_transform", "0", "--max_length", "64", "--batch_size", "2")
    words = quick(embedded_decoder, rows, tmp_path / "run", *WAYS[way], *few, "--eval_rows", "2")
    status, _, err = run(capsys, *words)
    assert status == 0, err
    measured = json.loads((tmp_path / "run" / "metrics.json").read_text())["loss"]
    status, out, err = run(capsys, "evaluate", str(tmp_path / "run"), "--json", "--models", "adapter", "merged")
    assert status == 0, err
    scored = json.loads(out)["results"]
    assert scored["adapter"]["loss"] == measured
    # a nat a token more would be a broken model; 4 bits cost some hundredths
    assert scored["merged"]["loss"] == pytest.approx(measured, abs=0.02 if way == "bf16" else 0.3)
    task = load_task(DataSource(str(rows), eval_rows=2))
    whole = score_task(load_base(str(embedded_decoder), "CAUSAL_LM"), load_tokenizer(str(embedded_decoder)), task, 64)
    assert measured == pytest.approx(whole["loss"], abs=0.1 if way == "bf16" else 0.4)
