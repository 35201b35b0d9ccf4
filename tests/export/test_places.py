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
from lrlora.export import RankChoice, export_lora, merge
from lrlora.saved import load_adapter
from lrlora.saved.load import load_base
from lrlora.training.model import put_on
from tests.conftest import disturb, tiny_llama, token_ids

pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")


def saved_adapter(base: Any, folder: Path, config: Any = lrlora.LRLoraConfig, **fields: Any) -> torch.Tensor:
    """Save an adapter that is not zero; what the adapted model says."""
    model: Any = peft.get_peft_model(base, config(r=2, task_type="CAUSAL_LM", **fields)).eval()
    disturb(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".modules_to_save." in name or (parameter.requires_grad and name.endswith("bias")):
                parameter.add_(0.1)
        logits = model(input_ids=token_ids()).logits
    model.save_pretrained(folder)
    return logits


def causal(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def says(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=token_ids()).logits


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": r".*(embed_tokens|q_proj)"},
        {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"], "bias": "all"},
    ],
    ids=str,
)
@pytest.mark.parametrize("is_moved", [False, True])
def test_an_adapted_embedding_whose_weight_was_saved(tmp_path, fields, is_moved):
    tiny_llama().save_pretrained(tmp_path / "base")
    base = causal(tmp_path / "base")
    if is_moved:
        # as a training of an earlier stage leaves it: then what is saved is W0, and not what the base's file says
        for embedding in (base.get_input_embeddings(), base.get_output_embeddings()):
            if _ending(base, embedding) in str(fields["target_modules"]):
                embedding.weight.data += 0.3
    expected = saved_adapter(base, tmp_path / "adapter", **fields)
    merge(str(tmp_path / "adapter"), tmp_path / "merged")
    torch.testing.assert_close(says(causal(tmp_path / "merged")), expected, rtol=1e-5, atol=1e-6)
    export_lora(str(tmp_path / "adapter"), tmp_path / "lora", RankChoice(energy=1.0))
    exported = peft.PeftModel.from_pretrained(causal(tmp_path / "base"), tmp_path / "lora")
    torch.testing.assert_close(says(exported), expected, rtol=1e-4, atol=1e-5)


def _ending(base: Any, module: Any) -> str:
    return next(name.split(".")[-1] for name, inside in base.named_modules() if inside is module)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
@pytest.mark.parametrize("is_tied", [False, True])
def test_a_resized_vocabulary_goes_along(tmp_path, is_tied):
    config = tiny_llama().config
    config.tie_word_embeddings = is_tied
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    base = causal(tmp_path / "base")
    base.resize_token_embeddings(70, mean_resizing=False)
    expected = saved_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    torch.testing.assert_close(says(load_adapter(str(tmp_path / "adapter"))), expected)
    merge(str(tmp_path / "adapter"), tmp_path / "merged")
    merged = causal(tmp_path / "merged")
    assert merged.config.vocab_size == 70
    torch.testing.assert_close(says(merged), expected, rtol=1e-5, atol=1e-6)
    export_lora(str(tmp_path / "adapter"), tmp_path / "lora", RankChoice(energy=1.0))
    torch.testing.assert_close(says(load_adapter(str(tmp_path / "lora"))), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_a_resized_output_layer_that_nobody_saved_is_refused(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    base = causal(tmp_path / "base")
    base.resize_token_embeddings(70, mean_resizing=False)
    saved_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens"])
    with pytest.raises(InputError, match=r"an embedding of 70 tokens, .* has 64, and the output layer of that length"):
        merge(str(tmp_path / "adapter"), tmp_path / "merged")


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


@pytest.mark.parametrize("is_tied", [False, True])
def test_trained_token_vectors_are_merged_and_exported(tmp_path, is_tied):
    base = tiny_llama()
    config = base.config
    config.tie_word_embeddings = is_tied
    base = type(base)(config)
    base.save_pretrained(tmp_path / "base")
    fields = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "trainable_token_indices": [5, 9]}
    model: Any = peft.get_peft_model(causal(tmp_path / "base"), lrlora.LRLoraConfig(r=2, **fields)).eval()
    disturb(model)
    trained = [p for name, p in model.named_parameters() if "token_adapter" in name and p.requires_grad]
    assert trained
    trained[0].data += 0.5
    ids = torch.tensor([[5, 9, 3, 5]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        model.save_pretrained(tmp_path / "adapter")
        merge(str(tmp_path / "adapter"), tmp_path / "merged", model=str(tmp_path / "base"))
        torch.testing.assert_close(causal(tmp_path / "merged")(input_ids=ids).logits, expected)
        export_lora(str(tmp_path / "adapter"), tmp_path / "lora", RankChoice(energy=1.0), model=str(tmp_path / "base"))
        exported = peft.PeftModel.from_pretrained(causal(tmp_path / "base"), tmp_path / "lora").eval()
        torch.testing.assert_close(exported(input_ids=ids).logits, expected)


@pytest.mark.parametrize("config", [peft.PromptTuningConfig, peft.PrefixTuningConfig, peft.PromptEncoderConfig])
def test_a_learned_prompt_has_its_place(tmp_path, config):
    # such an adapter lies before the base and not within it: its head has other names in the file
    tiny_llama().save_pretrained(tmp_path / "base")
    for task, fields in (("CAUSAL_LM", {}), ("SEQ_CLS", {"num_labels": 3, "pad_token_id": 0})):
        base = load_base(str(tmp_path / "base"), task, **fields)
        model = put_on(base, config(task_type=task, num_virtual_tokens=3)).eval()
        expected = says(model)
        model.save_pretrained(tmp_path / task)
        torch.testing.assert_close(says(load_adapter(str(tmp_path / task))), expected)


def test_tokens_trained_in_a_resized_vocabulary_go_along(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    base = causal(tmp_path / "base")
    base.resize_token_embeddings(70, mean_resizing=False)
    fields = {"target_modules": ["q_proj"], "trainable_token_indices": [1, 66]}
    expected = saved_adapter(base, tmp_path / "adapter", peft.LoraConfig, **fields)
    torch.testing.assert_close(says(load_adapter(str(tmp_path / "adapter"))), expected)
