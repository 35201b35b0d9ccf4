"""LR-LoRA by a YAML of LLaMA-Factory's second version, which USE_V1=1 switches on."""

import json
from pathlib import Path

import pytest

from lrlora.ranks.record import read_records
from tests.conftest import write_rows
from tests.integrations.cases import (
    assert_learned,
    assert_merged,
    assert_refused,
    assert_same_adapter,
    errors_of,
    needs,
    run,
    write_chats,
    write_yaml,
)
from tests.talkers import talker

real = needs("llamafactory")
COMMAND = ("env", "USE_V1=1", "python", "-m", "lrlora.integrations.llamafactory")
SETTINGS = {
    "model": "base",
    "template": "chatml",
    "peft_config": {"name": "lrlora", "r": 4, "lora_alpha": 8, "tau": "auto", "tau_warmup_steps": 1},
    "train_dataset": "rows.yaml",
    "output_dir": "out",
    "micro_batch_size": 4,
    "cutoff_len": 128,
    "max_steps": 4,
    "save_steps": 2,
    "learning_rate": 0.01,
    "batching_workers": 0,
    "seed": 1,
}
READ = """
import json, sys
import lrlora
from lrlora.integrations.llamafactory_v1 import config_of
from lrlora.tuner.config import LRLoraConfig
errors = []
for given in json.load(open(sys.argv[1])):
    try:
        config_of({"name": "lrlora", **given})
        errors.append(None)
    except lrlora.InputError as error:
        errors.append(str(error))
values = {"r": 3, "lora_dropout": 0.25, "exclude_modules": ["k_proj"], "bias": "all", "phi": "residual", "tau": 0.5}
named = config_of({"name": "lrlora", "target_modules": "q_proj", **values})
assert named == LRLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **values)
assert config_of({"name": "lrlora"}) == LRLoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
json.dump(errors, open(sys.argv[2], "w"))
"""
REFUSED = [
    ({"taus": 0.1}, "peft_config of lrlora has no taus; did you mean tau?"),
    ({"use_dora": True}, "peft_config of lrlora has no use_dora, got True"),
    ({"num_basis": 4}, "num_basis must be odd"),
]


@pytest.fixture(scope="module")
def trained(embedded_decoder, tmp_path_factory) -> Path:
    """A folder in which LLaMA-Factory has trained four steps, with checkpoints after the second and the fourth."""
    folder = tmp_path_factory.mktemp("llamafactory_v1")
    talker(folder / "base", embedded_decoder)
    write_chats(folder)
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    write_rows(folder / "alpaca.jsonl", [{"instruction": row["prompt"], "output": row["chosen"]} for row in rows])
    write_yaml(folder, "rows.yaml", {"sums": {"path": "alpaca.jsonl", "source": "local", "converter": "alpaca"}})
    write_yaml(folder, "train.yaml", SETTINGS)
    run(folder, *COMMAND, "sft", "train.yaml")
    return folder


@real
def test_an_adapter_is_trained_recorded_merged_and_used(trained):
    model = assert_learned(trained / "base", trained / "out")
    assert [record["step"] for record in read_records(trained / "out")][-1] == 4
    merge = {"name": "lora", "adapter_name_or_path": "out", "export_dir": "merged", "infer_dtype": "float32"}
    common = {"model": "base", "template": "chatml"}
    write_yaml(trained, "merge.yaml", {**common, "peft_config": merge})
    run(trained, *COMMAND, "merge", "merge.yaml")
    assert_merged(model, trained / "merged")
    saved = {"name": "lrlora", "adapter_name_or_path": "out"}
    write_yaml(trained, "saved.yaml", {**common, "peft_config": saved, "max_new_tokens": 4})
    assert "Assistant: " in run(trained, *COMMAND, "chat", "saved.yaml", typed="What is 2 plus 3?\nexit\n")


@real
def test_a_resumed_training_ends_with_the_same_adapter(trained):
    resume = ("output_dir=again", "resume_from_checkpoint=out/checkpoint-2")
    printed = run(trained, *COMMAND, "sft", "train.yaml", *resume)
    assert "step: 2," not in printed and "step: 3," in printed
    assert_same_adapter(trained / "again", trained / "out")


@real
def test_what_cannot_be_done_is_refused_by_name(trained):
    assert "leave USE_V1 out, and set stage: rm" in run(trained, *COMMAND, "rm", "train.yaml", fails=True)
    said = "the YAML needs peft_config: {name: lrlora}"
    assert said in run(trained, *COMMAND, "sft", "train.yaml", "peft_config.name=lora", fails=True)
    assert_refused(REFUSED, errors_of(trained, READ, [change for change, _ in REFUSED]))
