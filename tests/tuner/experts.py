"""Tiny models with 3-D weights of experts, and adapters on them."""

import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import nn

from lrlora import LRLoraConfig

BOTH = ["experts.gate_up_proj", "experts.down_proj"]
SMALL = dict(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


def mixtral(implementation: str = "eager") -> nn.Module:
    """Experts of [experts, out, in]."""
    torch.manual_seed(1)
    config = transformers.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)
    config._experts_implementation = implementation
    return transformers.MixtralForCausalLM(config).eval()


def qwen_moe() -> nn.Module:
    """Experts of [experts, out, in], eight of them."""
    torch.manual_seed(1)
    config = transformers.Qwen3MoeConfig(
        **SMALL, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=12, head_dim=8
    )
    return transformers.Qwen3MoeForCausalLM(config).eval()


def gpt_oss() -> nn.Module:
    """Experts of [experts, in, out], with biases."""
    torch.manual_seed(1)
    config = transformers.GptOssConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2, head_dim=8)
    return transformers.GptOssForCausalLM(config).eval()


def adapted(make=mixtral, **fields) -> PeftModel:
    fields = {"r": 2, "target_modules": [], "target_parameters": BOTH, "task_type": "CAUSAL_LM", **fields}
    return get_peft_model(make(), LRLoraConfig(**fields))
