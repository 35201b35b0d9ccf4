"""LR-LoRA by flags of ms-swift, with swift's own commands."""

import json
from pathlib import Path

import pytest

from lrlora.ranks.record import read_records
from tests.integrations.cases import (
    assert_learned,
    assert_merged,
    assert_same_adapter,
    needs,
    run,
    write_chats,
)
from tests.talkers import talker

real = needs("ms-swift")
AUTO = ("--model_kwargs", json.dumps({"lrlora": {"tau": "auto", "tau_warmup_steps": 1}}))
FLAGS = (
    *("--external_plugins", "plugin.py", "--tuner_type", "lrlora", "--callbacks", "lrlora"),
    *("--lora_rank", "4", "--lora_alpha", "8", "--lora_dropout", "0"),
    *("--model", "base", "--model_type", "llama", "--template", "chatml", "--torch_dtype", "float32"),
    *("--split_dataset_ratio", "0", "--max_length", "128", "--per_device_train_batch_size", "4"),
    *("--gradient_accumulation_steps", "1", "--max_steps", "4", "--save_steps", "2", "--logging_steps", "1"),
    *("--learning_rate", "0.01", "--add_version", "false", "--report_to", "none"),
)
SFT = ("swift", "sft", *FLAGS, "--dataset", "chats.jsonl")


@pytest.fixture(scope="module")
def trained(embedded_decoder, tmp_path_factory) -> Path:
    """A folder in which swift has trained four steps, with checkpoints after the second and the fourth."""
    folder = tmp_path_factory.mktemp("swift")
    talker(folder / "base", embedded_decoder)
    write_chats(folder)
    (folder / "plugin.py").write_text("import lrlora.integrations.ms_swift\n", encoding="utf-8")
    run(folder, *SFT, *AUTO, "--output_dir", "out")
    return folder


@real
def test_an_adapter_is_trained_recorded_merged_and_used(trained):
    model = assert_learned(trained / "base", trained / "out" / "checkpoint-4")
    assert [record["step"] for record in read_records(trained / "out")][-1] == 4
    export = ("swift", "export", "--adapters", "out/checkpoint-4", "--merge_lora", "true", "--output_dir", "merged")
    run(trained, *export)
    assert_merged(model, trained / "merged")
    infer = ("swift", "infer", "--adapters", "out/checkpoint-4", "--max_new_tokens", "4")
    assert "<<<" in run(trained, *infer, typed="What is 2 plus 3?\nexit\n")


@real
def test_a_resumed_training_ends_with_the_same_adapter(trained):
    printed = run(trained, *SFT, *AUTO, "--output_dir", "again", "--resume_from_checkpoint", "out/checkpoint-2")
    assert printed.count("'loss': ") == 2
    assert_same_adapter(trained / "again" / "checkpoint-4", trained / "out" / "checkpoint-4")


@real
def test_preference_pairs_are_trained(trained):
    pairs = ("swift", "rlhf", "--rlhf_type", "dpo", *FLAGS, "--dataset", "pairs.jsonl")
    run(trained, *pairs, *AUTO, "--output_dir", "pairs")
    assert_learned(trained / "base", trained / "pairs" / "checkpoint-4")


@real
def test_a_base_is_quantised_and_trained(trained):
    pytest.importorskip("bitsandbytes")
    printed = run(trained, *SFT, *AUTO, "--output_dir", "small", "--quant_method", "bnb", "--quant_bits", "4")
    assert "Linear4bit" in printed
    assert_learned(trained / "base", trained / "small" / "checkpoint-4")


@real
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--use_dora", "true"), "--tuner_type lrlora does not take --use_dora"),
        (("--lorap_lr_ratio", "4"), "--tuner_type lrlora does not take --lorap_lr_ratio"),
        (("--init_weights", "pissa"), "init_weights must be True, False or 'gaussian', got 'pissa'"),
        (("--model_kwargs", '{"lrlora": {"taus": 1}}'), "lrlora in --model_kwargs has no taus; did you mean tau?"),
        (("--model_kwargs", '{"lrlora": {"r": 1}}'), "has no r; the setting for it is --lora_rank"),
        (("--callbacks", "early_stop", *AUTO), "add --callbacks lrlora"),
    ],
    ids=["dora", "lora+", "pissa", "misspelt", "flag", "callback"],
)
def test_what_cannot_be_done_is_refused_by_name(trained, flags, said):
    assert said in run(trained, *SFT, *flags, "--output_dir", "refused", fails=True)
