"""LR-LoRA by a YAML of LLaMA-Factory, with LLaMA-Factory's own commands, of its first version."""

import json
from pathlib import Path

import pytest

from lrlora.ranks.record import read_records
from tests.integrations.cases import (
    assert_learned,
    assert_merged,
    assert_refused,
    assert_same_adapter,
    assert_same_but_for_tau,
    errors_of,
    fields_said,
    needs,
    run,
    weights,
    write_chats,
    write_yaml,
)
from tests.talkers import talker

real = needs("llamafactory")
COMMAND = ("python", "-m", "lrlora.integrations.llamafactory")
SETTINGS = {
    "model_name_or_path": "base",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 4,
    "lora_alpha": 8,
    "lora_target": "all",
    "lrlora": {"tau": "auto", "tau_warmup_steps": 1},
    "dataset": "sums",
    "dataset_dir": ".",
    "template": "chatml",
    "cutoff_len": 128,
    "output_dir": "out",
    "per_device_train_batch_size": 4,
    "max_steps": 4,
    "save_steps": 2,
    "logging_steps": 1,
    "learning_rate": 0.01,
    "report_to": "none",
    "seed": 1,
}
SAVED = {
    "model_name_or_path": "base",
    "adapter_name_or_path": "out",
    "finetuning_type": "lora",
    "template": "chatml",
    "infer_dtype": "float32",
}
READ = """
import json, sys
import lrlora
from lrlora.integrations import llamafactory
errors = []
for settings in json.load(open(sys.argv[1])):
    try:
        llamafactory.train(settings)
        errors.append(None)
    except lrlora.InputError as error:
        errors.append(str(error))
json.dump(errors, open(sys.argv[2], "w"))
"""
FIELDS = """
import json
from types import SimpleNamespace
from lrlora.integrations import llamafactory
from lrlora.integrations.fields import fields_without
from lrlora.tuner.config import LRLoraConfig
values = {"r": 3, "lora_alpha": 5, "lora_dropout": 0.25, "use_rslora": True, "target_modules": ["q_proj"],
          "exclude_modules": ["k_proj"], "modules_to_save": ["lm_head"], "bias": "all", "layers_to_transform": [1],
          "rank_pattern": {"q_proj": 2}, "phi": "residual", "num_basis": 7, "tau": 0.5, "carrier": "signs"}
keys = llamafactory.KEY_OF_FIELD
settings = SimpleNamespace(**{keys[name]: value for name, value in values.items() if name in keys})
block = {name: value for name, value in values.items() if name not in keys}
found = llamafactory.config_of(settings, block, settings.lora_target)
asked = LRLoraConfig(task_type="CAUSAL_LM", **values)
print("FIELDS", json.dumps([found == asked, sorted({*fields_without(keys), *keys} ^ {*LRLoraConfig.__annotations__})]))
"""
REFUSED = [
    ({"use_dora": True}, "LR-LoRA does not take use_dora, got True"),
    ({"loraplus_lr_ratio": 16.0}, "LR-LoRA does not take loraplus_lr_ratio, got 16.0"),
    ({"create_new_adapter": True}, "LR-LoRA does not take create_new_adapter"),
    ({"finetuning_type": "oft"}, "LR-LoRA needs finetuning_type: lora, got oft"),
    ({"lrlora": {"taus": 0.1}}, "lrlora: has no taus; did you mean tau?"),
    ({"lrlora": {"r": 4}}, "lrlora: has no r; the setting for it is lora_rank"),
    ({"lrlora": {"phi": "sink"}}, "phi must be one of 'sinc', 'residual', 'sine', 'linear', got 'sink'"),
    ({"lrlora": "auto"}, "lrlora: needs fields by name, such as {tau: auto}, got 'auto'"),
    ({"lrlora": None}, "no lrlora: in the YAML, such as {tau: auto} or {}"),
    ({"adapter_name_or_path": "out"}, "the fields of the adapter in out hold; leave lrlora: out"),
    ({"lrlora": None, "adapter_name_or_path": "plain"}, "plain holds an adapter of the method LORA"),
]


@pytest.fixture(scope="module")
def trained(embedded_decoder, tmp_path_factory) -> Path:
    """A folder in which LLaMA-Factory has trained four steps, with checkpoints after the second and the fourth."""
    folder = tmp_path_factory.mktemp("llamafactory")
    talker(folder / "base", embedded_decoder)
    write_chats(folder)
    pairs = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    info = {
        "sums": {"file_name": "prompts.jsonl", "columns": {"prompt": "prompt", "response": "chosen"}},
        "pairs": {"file_name": "prompts.jsonl", "ranking": True, "columns": pairs},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    write_yaml(folder, "train.yaml", SETTINGS)
    write_yaml(folder, "go_on.yaml", {key: value for key, value in SETTINGS.items() if key != "lrlora"})
    write_yaml(folder, "saved.yaml", SAVED)
    run(folder, *COMMAND, "train", "train.yaml")
    return folder


@real
def test_an_adapter_is_trained_recorded_merged_and_used(trained):
    model = assert_learned(trained / "base", trained / "out")
    assert [record["step"] for record in read_records(trained / "out")][-1] == 4
    run(trained, *COMMAND, "export", "saved.yaml", "export_dir=merged")
    assert_merged(model, trained / "merged")
    printed = run(trained, *COMMAND, "chat", "saved.yaml", "max_new_tokens=4", typed="What is 2 plus 3?\nexit\n")
    assert "Assistant: " in printed


@real
def test_a_resumed_training_ends_with_the_same_adapter(trained):
    resume = ("output_dir=again", "resume_from_checkpoint=out/checkpoint-2")
    printed = run(trained, *COMMAND, "train", "train.yaml", *resume)
    assert printed.count("'loss': ") == 2
    assert_same_adapter(trained / "again", trained / "out")


@real
def test_a_saved_adapter_is_gone_on_with(trained):
    go_on = ("adapter_name_or_path=out", "learning_rate=0.0", "output_dir=more")
    run(trained, *COMMAND, "train", "go_on.yaml", *go_on)
    assert_same_but_for_tau(trained / "more", trained / "out")


@real
def test_preference_pairs_are_trained(trained):
    run(trained, *COMMAND, "train", "train.yaml", "stage=dpo", "dataset=pairs", "output_dir=pairs")
    assert_learned(trained / "base", trained / "pairs")


@real
def test_a_base_is_quantised_and_trained(trained):
    pytest.importorskip("bitsandbytes")
    printed = run(trained, *COMMAND, "train", "train.yaml", "quantization_bit=4", "output_dir=small")
    assert "Linear4bit" in printed or "4 bit" in printed, printed[-4000:]
    assert_learned(trained / "base", trained / "small")


@real
def test_two_processes_train_one_adapter(trained):
    launch = ("torchrun", "--nproc_per_node", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0")
    where = ("use_cpu=true", "ddp_backend=gloo", "per_device_train_batch_size=2", "output_dir=two")
    run(trained, *launch, *COMMAND[1:], "train", "train.yaml", *where)
    assert_learned(trained / "base", trained / "two")
    found, expected = weights(trained / "two"), weights(trained / "out")
    for name, value in expected.items():
        assert (found[name] - value).abs().max() < 1e-4 * value.abs().max(), name
    said = "start them yourself: torchrun --nproc_per_node 1 -m lrlora.integrations.llamafactory train train.yaml"
    assert said in run(trained, "env", "FORCE_TORCHRUN=1", *COMMAND, "train", "train.yaml", fails=True)


@real
def test_what_cannot_be_done_is_refused_by_name(trained):
    import peft
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(trained / "base")
    peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(trained / "plain")
    changes = [{**SETTINGS, **change} for change, _ in REFUSED]
    assert_refused(REFUSED, errors_of(trained, READ, changes))


@real
def test_every_field_has_a_key(tmp_path):
    assert fields_said(tmp_path, FIELDS) == [True, ["config_version", "init_lora_weights"]]
