"""Adapted embeddings, resized vocabularies and trained token vectors go along when an adapter is merged or exported."""

from typing import Any

import peft
import pytest
import torch
import transformers

import lrlora
from lrlora import InputError
from lrlora.export import RankChoice, export_lora, merge
from lrlora.saved import load_adapter
from tests.conftest import disturb, tiny_llama
from tests.export.cases import causal, saved_adapter, says

pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")


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


def test_tokens_trained_in_a_resized_vocabulary_go_along(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    base = causal(tmp_path / "base")
    base.resize_token_embeddings(70, mean_resizing=False)
    fields = {"target_modules": ["q_proj"], "trainable_token_indices": [1, 66]}
    expected = saved_adapter(base, tmp_path / "adapter", peft.LoraConfig, **fields)
    torch.testing.assert_close(says(load_adapter(str(tmp_path / "adapter"))), expected)
