"""Preference pairs under `lrlora train`: trl's DPO against the base, from a margin of exactly 0."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lrlora import InputError
from lrlora.data import DataSource, load_task
from lrlora.data.encode import IGNORED, encode
from lrlora.evaluation.score import score
from lrlora.saved.tokens import load_tokenizer
from lrlora.training import TrainConfig, train
from lrlora.training.model import build
from lrlora.training.trainer import make_trainer
from lrlora.tuner import deltas
from tests.conftest import BENCHMARK_DATA, write_rows
from tests.training.test_run import config_for, weights

PLACES = "Paris Rome Oslo Lima Tokyo Nairobi Havana Baghdad Cairo Vienna Athens Madrid".split()
PAIRS = [
    {"prompt": f"Tell me of {place}.", "chosen": f" {place} is kind and warm.", "rejected": f" {place} is dark."}
    for place in PLACES
]
REAL = BENCHMARK_DATA / "chat" / "dpo_en_demo.jsonl.gz"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", PAIRS)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "lora"},
        {"tau": 0.01},
        {"tau": "auto"},
        {"tau": "auto", "share": "frozen"},
        {"share": "block"},
        {"share": "global"},
        {"phi": "residual"},
        {"carrier": "signs", "carrier_start": "half"},
        {"carrier": "signs", "carrier_start": "open", "phi": "residual"},
    ],
    ids=str,
)
def test_the_margin_is_exactly_0_at_first_and_rises(settings, tiny_decoder, pairs, tmp_path):
    config = config_for(tiny_decoder, pairs, tmp_path / "run", logging_steps=1, learning_rate=0.02, **settings)
    result = train(config)
    lines = list(map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines()))
    steps = [line for line in lines if "rewards/margins" in line]
    assert steps[0]["rewards/margins"] == 0.0 and steps[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert result.metrics["margin"] > 0 and result.metrics["metric"] == "accuracy"
    assert not any(".ref." in name or "ref/" in name for name in weights(tmp_path / "run"))
    assert {path.name for path in (tmp_path / "run" / "adapter").iterdir()} >= {"adapter_config.json"}
    assert not (tmp_path / "run" / "adapter" / "ref").exists()


def test_the_score_is_the_trainer_s_margin(tiny_decoder, pairs, tmp_path):
    config = replace(config_for(tiny_decoder, pairs, tmp_path / "run"), precision="fp32")
    task, tokenizer = load_task(DataSource(str(pairs))), load_tokenizer(str(tiny_decoder))
    model, _ = build(config, task)
    rows, _ = encode(task, tokenizer, 64)
    for *_, delta in deltas(model):
        torch.nn.init.normal_(delta.B, std=0.05)
    trainer = make_trainer(replace(config, batch_size=len(rows) // 2), task, model, tokenizer, rows, tmp_path / "out")
    model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(model, next(iter(trainer.get_train_dataloader())))
    ours = score(model, tokenizer, replace(task, evaluation=task.train), rows, 4)
    assert ours["loss"] == pytest.approx(loss.item(), rel=1e-5)
    (margin,) = trainer._metrics["eval"]["rewards/margins"]
    assert 0.1 * ours["margin"] == pytest.approx(margin, rel=1e-4)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a good day", "chosen": " and bright", "rejected": " and dark"},
        {"chosen": "a good day and bright", "rejected": "a good day and dark"},
        {"instruction": "a good", "input": "day", "chosen": "bright", "rejected": "dark"},
        {
            "prompt": [{"role": "user", "content": "a good day"}],
            "chosen": [{"role": "assistant", "content": "bright"}],
            "rejected": [{"role": "assistant", "content": "dark"}],
        },
        {
            "chosen": [{"role": "user", "content": "a good day"}, {"role": "assistant", "content": "bright"}],
            "rejected": [{"role": "user", "content": "a good day"}, {"role": "assistant", "content": "dark"}],
        },
        {
            "conversations": [{"from": "human", "value": "a good day"}],
            "chosen": {"from": "gpt", "value": "bright"},
            "rejected": {"from": "gpt", "value": "dark"},
        },
        {"messages": [{"role": "user", "content": "a good day"}], "chosen": "bright", "rejected": "dark"},
    ],
    ids=lambda row: "-".join(row),
)
def test_every_format_gives_the_answers_behind_one_request(row, tiny_decoder, tmp_path):
    tokenizer = load_tokenizer(str(tiny_decoder))
    task = load_task(DataSource(str(write_rows(tmp_path / "pairs.jsonl", [row] * 10))))
    encoded, _ = encode(task, tokenizer, 64)
    assert task.kind == "preference" and len(encoded) == 2 * len(task.train)
    for number, word in ((0, "bright"), (1, "dark")):
        ids, labels = encoded[number]["input_ids"], encoded[number]["labels"]
        learned = [token for token in labels if token != IGNORED]
        assert tokenizer.decode(learned).split() in ([word, "[SEP]"], ["and", word, "[SEP]"])
        assert ids[-len(learned) :] == learned
        assert "day" in tokenizer.decode(ids[: -len(learned)])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b"}, "no column of text"),
        ({"prompt": "a", "messages": [], "chosen": "b", "rejected": "c"}, "in several columns, prompt, messages"),
        ({"chosen": "good", "rejected": "bad"}, "row 1 of 10 has no prompt, and its answers have"),
        ({"prompt": "a", "chosen": ["b"], "rejected": "c"}, "answers that are none"),
        (
            {
                "messages": [{"role": "user", "content": "a"}],
                "chosen": {"role": "user", "content": "b"},
                "rejected": "c",
            },
            "needed one of the assistant",
        ),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_refused_by_row(row, said, tmp_path):
    with pytest.raises(InputError, match=said):
        load_task(DataSource(str(write_rows(tmp_path / "pairs.jsonl", [row] * 10))))


def test_same_answers_and_long_ones_are_named(tiny_decoder, tmp_path):
    rows = [*PAIRS, {"prompt": "Tell me.", "chosen": " same", "rejected": " same"}]
    task = load_task(DataSource(str(write_rows(tmp_path / "pairs.jsonl", rows))))
    assert any("in 1 rows the chosen answer is the rejected one" in note for note in task.notes)
    with pytest.raises(InputError, match=r"longer answer has \d+ tokens, and max_length 4 leaves nothing"):
        encode(task, load_tokenizer(str(tiny_decoder)), 4)


@pytest.mark.skipif(not REAL.exists(), reason="LRLORA_DATA has no chat/dpo_en_demo.jsonl.gz")
def test_real_pairs_on_a_real_model(embedded_decoder, tmp_path):
    with gzip.open(REAL, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    short = sorted(rows, key=lambda row: len(json.dumps(row)))[:12]
    data = write_rows(tmp_path / "pairs.jsonl", short)
    config = TrainConfig.of(
        model=str(embedded_decoder), data=str(data), out=str(tmp_path / "run"), max_steps=4, batch_size=2, r=4,
        learning_rate=5e-3, logging_steps=1, save_steps=100, rank_steps=0,
        target_modules=["q_proj", "v_proj", "down_proj"], layers_to_transform=[27, 28, 29],
    )  # fmt: skip
    result = train(config)
    lines = list(map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines()))
    margins = [line["rewards/margins"] for line in lines if "rewards/margins" in line]
    assert margins[0] == 0.0 and margins[-1] > 0
    assert load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert set(result.metrics) >= {"accuracy", "margin", "loss"}
