"""LR-LoRA by a YAML of axolotl, with axolotl's own commands."""

import shutil
from pathlib import Path

import pytest

import lrlora
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
    write_chats,
    write_yaml,
)
from tests.talkers import talker

real = needs("axolotl")
SETTINGS = {
    "plugins": ["lrlora.integrations.axolotl.LRLoraPlugin"],
    "base_model": "base",
    "adapter": "lrlora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    "lrlora": {"tau": "auto", "tau_warmup_steps": 1},
    "datasets": [{"path": "chats.jsonl", "ds_type": "json", "type": "chat_template"}],
    "dataset_prepared_path": "prepared",
    "output_dir": "out",
    "val_set_size": 0,
    "sequence_len": 128,
    "micro_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_steps": 4,
    "save_steps": 2,
    "logging_steps": 1,
    "learning_rate": 0.01,
    "optimizer": "adamw_torch",
    "lr_scheduler": "constant",
    "bf16": False,
    "fp16": False,
    "tf32": False,
    "seed": 1,
}
READ = """
import json, sys
from axolotl.cli.config import load_cfg
from axolotl.utils.dict import DictDefault
errors = []
for settings in json.load(open(sys.argv[1])):
    try:
        load_cfg(DictDefault(settings))
        errors.append(None)
    except ValueError as error:
        errors.append(str(error))
json.dump(errors, open(sys.argv[2], "w"))
"""
FIELDS = """
import json
from lrlora.integrations import axolotl
from lrlora.tuner.config import LRLoraConfig
values = {"r": 3, "lora_alpha": 5, "lora_dropout": 0.25, "use_rslora": True, "target_modules": ["q_proj"],
          "exclude_modules": ["k_proj"], "target_parameters": ["w"], "modules_to_save": ["lm_head"], "bias": "all",
          "layers_to_transform": [1], "layers_pattern": ["layers"], "rank_pattern": {"q_proj": 2},
          "alpha_pattern": {"q_proj": 7}, "trainable_token_indices": [4], "fan_in_fan_out": True,
          "init_weights": "gaussian", "phi": "residual", "num_basis": 7, "tau": 0.5, "kappa": 2.0,
          "tau_warmup_steps": 3, "tau_follow": 0.5, "share": "block", "omega": 10.0, "carrier": "signs",
          "carrier_offset": 0.25, "carrier_start": "half", "carrier_seed": 9}
key_of_field = {field: key for key, field in axolotl.FIELD_OF_KEY.items()}
settings = {key_of_field[name]: value for name, value in values.items() if name in key_of_field}
block = axolotl.LRLoraBlock(**{name: value for name, value in values.items() if name not in key_of_field})
found, asked = axolotl.config_of(settings, block.model_dump()), LRLoraConfig(**values)
names = set(LRLoraConfig.__annotations__) - {"init_lora_weights", "config_version"}
print("FIELDS", json.dumps([found == asked, sorted(names - set(values)),
      sorted(name for name in names if getattr(asked, name) == getattr(LRLoraConfig(), name)),
      sorted(axolotl.LRLoraBlock.model_fields)]))
"""


@pytest.fixture(scope="module")
def trained(embedded_decoder, tmp_path_factory) -> Path:
    """A folder in which axolotl has trained four steps, with checkpoints after the second and the fourth."""
    folder = tmp_path_factory.mktemp("axolotl")
    talker(folder / "base", embedded_decoder)
    write_chats(folder)
    write_settings(folder)
    run(folder, "axolotl", "preprocess", "settings.yaml")
    run(folder, "axolotl", "train", "settings.yaml")
    return folder


def write_settings(folder: Path, name: str = "settings.yaml", **changed) -> None:
    write_yaml(folder, name, {**SETTINGS, **changed})


@real
def test_an_adapter_is_trained_recorded_and_merged(trained):
    model = assert_learned(trained / "base", trained / "out")
    assert [record["step"] for record in read_records(trained / "out")][-1] == 4
    refused = run(trained, "axolotl", "merge-lora", "settings.yaml", fails=True)
    assert "merge_method: memory_efficient adds s B A, without phi" in refused
    run(trained, "axolotl", "merge-lora", "settings.yaml", "--merge-method", "legacy")
    assert_merged(model, trained / "out" / "merged")


@real
def test_a_resumed_training_ends_with_the_same_adapter(trained):
    shutil.copytree(trained / "out" / "checkpoint-2", trained / "again" / "checkpoint-2")
    write_settings(trained, "again.yaml", output_dir="again")
    printed = run(trained, "axolotl", "train", "again.yaml", "--resume-from-checkpoint", "again/checkpoint-2")
    assert printed.count("'loss': ") == 2
    assert_same_adapter(trained / "again", trained / "out")


@real
def test_a_saved_adapter_is_gone_on_with(trained):
    write_settings(trained, "on.yaml", output_dir="on", lora_model_dir="out", learning_rate=0.0, lora_r=2)
    printed = run(trained, "axolotl", "train", "on.yaml")
    assert "the adapter of out keeps what it was trained with: r 4, not 2" in printed
    assert_same_but_for_tau(trained / "on", trained / "out")


@real
def test_preference_pairs_are_trained(trained):
    pairs = [{"path": "prompts.jsonl", "ds_type": "json", "split": "train", "type": "passthrough"}]
    write_settings(
        trained, "pairs.yaml", rl="dpo", datasets=pairs, output_dir="pairs", dataset_prepared_path="prepared_pairs"
    )
    run(trained, "axolotl", "train", "pairs.yaml")
    assert_learned(trained / "base", trained / "pairs")


@real
def test_a_base_that_is_quantised_already_is_trained(trained):
    pytest.importorskip("bitsandbytes")
    code = (
        "import torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig\n"
        "how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_compute_dtype=torch.float32)\n"
        "model = AutoModelForCausalLM.from_pretrained('base', quantization_config=how, device_map={'': 'cpu'})\n"
        "model.save_pretrained('small')\n"
        "AutoTokenizer.from_pretrained('base').save_pretrained('small')\n"
    )
    run(trained, "python", "-c", code)
    write_settings(trained, "small.yaml", base_model="small", output_dir="out_small")
    run(trained, "axolotl", "train", "small.yaml")
    model = assert_learned(trained / "small", trained / "out_small")
    assert {type(layer.base_layer).__name__ for _, layer, _, _ in lrlora.deltas(model)} == {"Linear4bit"}


REFUSED = [
    ({"load_in_4bit": True}, "axolotl quantises a base while it loads it for adapter: lora and qlora only"),
    ({"peft_use_dora": True}, "adapter: lrlora does not take peft_use_dora"),
    ({"peft": {"loftq_config": {"loftq_bits": 4}}}, "adapter: lrlora does not take peft"),
    ({"lora_mlp_kernel": True}, "without phi"),
    ({"loraplus_lr_ratio": 4}, "lr_groups"),
    ({"fsdp_config": {"reshard_after_forward": True}, "fsdp_version": 2}, "by its parameters alone, without tau"),
    ({"relora": True, "jagged_restart_steps": 2}, "cfg.adapter must support ReLoRA"),
    ({"peft_init_lora_weights": "pissa"}, "init_weights must be True, False or 'gaussian', got 'pissa'"),
    ({"lora_alhpa": 8}, "axolotl does not know lora_alhpa; did you mean lora_alpha?"),
    ({"lora_exclude_modules": ["q_proj"]}, "write exclude_modules under lrlora:"),
    ({"lrlora_tau": 0.1}, "write tau under lrlora:"),
    ({"tau": 0.1}, "axolotl does not know tau; write tau under lrlora:"),
    ({"lrlora": {"taus": 0.1}}, "lrlora: has no taus; did you mean tau?"),
    ({"lrlora": {"r": 4}}, "lrlora: has no r; the setting for it is lora_r"),
    ({"lrlora": {"num_basis": 4}}, "num_basis must be odd"),
    ({"lrlora": {"phi": "sink"}}, "Input should be 'sinc', 'residual', 'sine' or 'linear'"),
    ({"lrlora": "auto"}, "lrlora: needs fields by name, such as {tau: auto}, got 'auto'"),
    ({"adapter": "lora"}, "the keys under lrlora: need adapter: lrlora, got adapter: lora"),
]


@real
def test_what_cannot_be_done_is_refused_by_name(trained):
    good = {"lrlora": {"tau": "5e-2"}, "lr_groups": [{"name": "B", "modules": ["lrlora_delta.default.B"], "lr": 0.1}]}
    changes = [*(change for change, _ in REFUSED), good]
    *errors, of_good = errors_of(trained, READ, [{**SETTINGS, **change} for change in changes])
    assert_refused(REFUSED, errors)
    assert of_good is None, of_good


@real
def test_every_field_has_a_key(tmp_path):
    phi = ["carrier", "carrier_offset", "carrier_seed", "carrier_start", "kappa", "num_basis", "omega", "phi", "share"]
    tau = ["tau", "tau_follow", "tau_warmup_steps"]
    assert fields_said(tmp_path, FIELDS) == [
        True,
        [],
        [],
        ["bias", *phi[:4], "exclude_modules", *phi[4:], *tau],
    ]
