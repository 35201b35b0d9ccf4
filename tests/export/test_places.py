"""Every tensor of an adapter finds its place in the base, and a saved base weight is the W0 of its update."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import lrlora
from lrlora import InputError
from lrlora.cli import main
from lrlora.saved import load_adapter
from lrlora.saved.load import load_base
from lrlora.training.model import put_on
from tests.conftest import tiny_llama
from tests.export.cases import causal, saved_adapter, says

pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")


def _fewer_blocks(folder: Path) -> list[str]:
    config = tiny_llama().config
    config.num_hidden_layers = 1
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "one")
    return ["--model", str(folder / "one")]


def _fewer_targets(folder: Path) -> list[str]:
    _edit(folder, lambda config: config.update(target_modules=["q_proj"]))
    return []


def _renamed_module(folder: Path) -> list[str]:
    from safetensors.torch import save_file

    file = folder / "adapter" / "adapter_model.safetensors"
    tensors = {
        key.replace("layers.1.self_attn.v_proj", "layers.1.self_attn.v"): v for key, v in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})
    return []


def _a_head_of_its_own(folder: Path) -> list[str]:
    from safetensors.torch import save_file

    file = folder / "adapter" / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.value_head.weight": torch.ones(1, 32)}, file)
    return []


def _edit(folder: Path, change: Any) -> None:
    file = folder / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("method", [lrlora.LRLoraConfig, peft.LoraConfig])
@pytest.mark.parametrize("spoil", [_fewer_blocks, _fewer_targets, _renamed_module, _a_head_of_its_own])
def test_tensors_that_find_no_place_are_refused(tmp_path, capsys, method, spoil):
    tiny_llama().save_pretrained(tmp_path / "base")
    saved_adapter(causal(tmp_path / "base"), tmp_path / "adapter", method, target_modules=["q_proj", "v_proj"])
    adapter, flags = str(tmp_path / "adapter"), spoil(tmp_path)
    with pytest.raises(InputError, match=r"have no place in .*, the first is "):
        load_adapter(adapter, flags[1] if flags else None)
    if method is lrlora.LRLoraConfig:
        out = ["--out", str(tmp_path / "out")]
        model = flags or ["--model", str(tmp_path / "base")]
        for command in (["merge", *out], ["export", *out], ["ranks"], ["ranks", "--rank_pattern", str(tmp_path / "r")]):
            capsys.readouterr()
            assert main([command[0], adapter, *command[1:], *model]) == 2, command
            err = capsys.readouterr().err
            assert "have no place in" in err and "the first is " in err
    assert not (tmp_path / "out").exists()


def test_a_base_with_more_blocks_is_refused_for_plain_lora_too(tmp_path):
    config = tiny_llama().config
    tiny_llama().save_pretrained(tmp_path / "base")
    saved_adapter(causal(tmp_path / "base"), tmp_path / "adapter", peft.LoraConfig, target_modules=["q_proj"])
    config.num_hidden_layers = 3
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "three")
    with pytest.raises(InputError, match=r"holds no tensors for model.layers.2.self_attn.q_proj.* \(2 such tensors\)"):
        load_adapter(str(tmp_path / "adapter"), str(tmp_path / "three"))


def _pickled(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    torch.save(load_file(file), adapter / "adapter_model.bin")
    file.unlink()


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (
            _pickled,
            "adapter_model.bin is a pickle, which can run any code; lrlora reads only adapter_model.safetensors",
        ),
        (lambda adapter: (adapter / "adapter_model.safetensors").unlink(), "no adapter file"),
        (lambda adapter: (adapter / "adapter_config.json").write_text(""), "is not readable as JSON"),
        (lambda adapter: (adapter / "adapter_config.json").write_text('{"r": '), "is not readable as JSON"),
        (lambda adapter: (adapter / "adapter_config.json").write_text("[1]"), "is no JSON object"),
    ],
)
def test_what_is_no_adapter_is_one_line(tmp_path, capsys, spoil, word):
    tiny_llama().save_pretrained(tmp_path / "base")
    saved_adapter(causal(tmp_path / "base"), tmp_path / "adapter", target_modules=["q_proj"])
    spoil(tmp_path / "adapter")
    capsys.readouterr()
    for command in (["merge", "--out", str(tmp_path / "o")], ["export", "--out", str(tmp_path / "o")], ["ranks"]):
        assert main([command[0], str(tmp_path / "adapter"), *command[1:]]) == 2
        err = capsys.readouterr().err
        assert word in err and len(err.splitlines()) == 1, err


def test_a_base_that_is_gone_is_one_line_and_a_local_one_is_written_whole(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_llama().save_pretrained("base")
    saved_adapter(causal(Path("base")), tmp_path / "adapter", target_modules=["q_proj"])
    assert main(["export", "~/adapter", "--out", "~/lora"]) == 0
    assert main(["merge", "~/adapter", "--out", "~/merged", "--model", "~/base"]) == 0
    written = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(tmp_path / "base")
    assert (tmp_path / "merged" / "config.json").exists() and not (tmp_path / "~").exists()
    _edit(tmp_path, lambda config: config.update(base_model_name_or_path=str(tmp_path / "base")))
    shutil.move("base", "moved")
    for command in (["merge", "--out", "out"], ["export", "--out", "out"]):
        capsys.readouterr()
        assert main([command[0], "adapter", *command[1:]]) == 2
        said = capsys.readouterr().err
        assert f"there is no folder {tmp_path / 'base'}; adapter/adapter_config.json names it" in said
        assert main([command[0], "adapter", *command[1:], "--model", "moved", "--overwrite"]) == 0
        shutil.rmtree("out")


@pytest.mark.parametrize("config", [peft.PromptTuningConfig, peft.PrefixTuningConfig, peft.PromptEncoderConfig])
def test_a_learned_prompt_has_its_place(tmp_path, config):
    # such an adapter is put before the base and not within it: its head has other names in the file
    tiny_llama().save_pretrained(tmp_path / "base")
    for task, fields in (("CAUSAL_LM", {}), ("SEQ_CLS", {"num_labels": 3, "pad_token_id": 0})):
        base = load_base(str(tmp_path / "base"), task, **fields)
        model = put_on(base, config(task_type=task, num_virtual_tokens=3)).eval()
        expected = says(model)
        model.save_pretrained(tmp_path / task)
        torch.testing.assert_close(says(load_adapter(str(tmp_path / task))), expected)
