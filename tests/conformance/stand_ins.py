"""Tiny random models under the names that PEFT's tests ask the hub for.

`from_pretrained("org/name")` prefers a folder of that name to the hub, so it is enough to run the tests where these
lie: python -m tests.conformance.stand_ins FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

_LLAMA: dict[str, Any] = dict(
    vocab_size=1024, hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_GROUPED = {**_LLAMA, "num_key_value_heads": 2}
_BERT: dict[str, Any] = dict(
    vocab_size=1124, hidden_size=32, intermediate_size=37, num_hidden_layers=5, num_attention_heads=4,
    max_position_embeddings=512, pad_token_id=0,
)  # fmt: skip
_DEBERTA = {**_BERT, "relative_attention": False, "position_biased_input": True, "pos_att_type": "none"}
_OPT: dict[str, Any] = dict(
    vocab_size=1024, hidden_size=16, ffn_dim=4, num_hidden_layers=5, num_attention_heads=4,
    max_position_embeddings=100, word_embed_proj_dim=16,
)  # fmt: skip
_GPT2: dict[str, Any] = dict(vocab_size=1024, n_embd=32, n_layer=5, n_head=4, n_positions=512)
_T5: dict[str, Any] = dict(
    vocab_size=1103, d_model=32, d_kv=8, d_ff=37, num_layers=5, num_heads=4, decoder_start_token_id=0
)
_BART: dict[str, Any] = dict(
    vocab_size=1024, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=4, decoder_ffn_dim=4, max_position_embeddings=100,
)  # fmt: skip
_LLAMA4 = {
    **_GROUPED, "head_dim": 8, "intermediate_size_mlp": 32, "num_local_experts": 4, "interleave_moe_layer_step": 1,
}  # fmt: skip
_GPT_OSS = {**_GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}
# test_quantization counts 24 layers: q_proj and v_proj in twelve blocks
_OPT_125M = {**_OPT, "hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128, "num_hidden_layers": 12,
             "max_position_embeddings": 256}  # fmt: skip

# name on the hub: (model class, config class, fields)
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("OPTForCausalLM", "OPTConfig", _OPT),
    "peft-internal-testing/opt-125m": ("OPTForCausalLM", "OPTConfig", _OPT_125M),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "peft-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "hf-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("GPTJForCausalLM", "GPTJConfig", {**_GPT2, "rotary_dim": 4}),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", "LlamaConfig", _LLAMA),
    "peft-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", "LlamaConfig", _LLAMA),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GROUPED),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("MistralForCausalLM", "MistralConfig", _GROUPED),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": (
        "Gemma3ForCausalLM", "Gemma3TextConfig", {**_GROUPED, "head_dim": 8}),
    "trl-internal-testing/tiny-Llama4ForCausalLM": ("Llama4ForCausalLM", "Llama4TextConfig", _LLAMA4),
    "trl-internal-testing/tiny-GptOssForCausalLM": ("GptOssForCausalLM", "GptOssConfig", _GPT_OSS),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": (
        "T5ForConditionalGeneration", "T5Config", _T5),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": (
        "BartForConditionalGeneration", "BartConfig", _BART),
    "peft-internal-testing/tiny-random-BertModel": ("BertModel", "BertConfig", _BERT),
    "peft-internal-testing/tiny-random-RobertaModel": ("RobertaModel", "RobertaConfig", _BERT),
    "peft-internal-testing/tiny-random-DebertaModel": ("DebertaModel", "DebertaConfig", _DEBERTA),
    "peft-internal-testing/tiny-random-DebertaV2Model": ("DebertaV2Model", "DebertaV2Config", _DEBERTA),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": (
        "BertForSequenceClassification", "BertConfig", _BERT),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": (
        "RobertaForSequenceClassification", "RobertaConfig", _BERT),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": (
        "LlamaForSequenceClassification", "LlamaConfig", _LLAMA),
}  # fmt: skip


def write_all(folder: Path) -> None:
    """Write every model, and the one adapter config that a test asks for."""
    for name, (model_name, config_name, fields) in MODELS.items():
        torch.manual_seed(0)
        model = getattr(transformers, model_name)(getattr(transformers, config_name)(**fields))
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                # as initialised, outputs are so close to 0 that no adapter would visibly change them
                if parameter.ndim > 1 and "embed" not in parameter_name:
                    parameter.mul_(5)
        model.save_pretrained(folder / name)
    base = "peft-internal-testing/tiny-random-OPTForCausalLM"
    config = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM, target_modules=["q_proj", "v_proj"], base_model_name_or_path=base
    )
    config.save_pretrained(str(folder / "peft-internal-testing" / "tiny-opt-lora-revision"))


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
