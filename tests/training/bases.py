"""Bases that are loaded in other precisions, and what their tests share."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.conftest import write_rows

WAYS = {
    "bf16": ("--dtype", "bfloat16"),
    "fp16": ("--dtype", "float16"),
    "auto": ("--dtype", "auto"),
    "bnb-4bit": ("--quantization", "bnb-4bit"),
    "qlora": ("--quantization", "bnb-4bit", "--dtype", "bfloat16"),
    "bnb-8bit": ("--quantization", "bnb-8bit"),
    "torchao-int8": ("--quantization", "torchao-int8"),
}
"""The flags of each."""

# what the quantisation libraries say about themselves
QUIET = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*compute_dtype:UserWarning"),
]


def need(way: str) -> None:
    """Skip where the package of a quantisation is not installed."""
    for name, package in (("bnb", "bitsandbytes"), ("qlora", "bitsandbytes"), ("torchao", "torchao")):
        if way.startswith(name):
            pytest.importorskip(package, reason=f"{package} is not installed")


def decoder(folder: Path, tokenizer_from: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A random Llama, wide enough for blocks of 64 weights, with a real tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    tokenizer.eos_token = tokenizer.sep_token
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sums(path: Path) -> Path:
    """Rows of prompts and completions."""
    rows = [{"prompt": f"What is {n} plus {n}?", "completion": f"It is {2 * n}."} for n in range(40)]
    return write_rows(path, rows)


def days(path: Path) -> Path:
    """Rows of two classes."""
    return write_rows(path, [{"text": f"a {('good', 'bad')[n % 2]} day {n}", "label": n % 2} for n in range(40)])
