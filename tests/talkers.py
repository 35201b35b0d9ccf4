"""Tiny causal models with a real tokenizer and its chat template: one is random, one has learned to grade."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from tests.conftest import tiny_llama, write_rows

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write a line about rain.", "Now in capital letters."]},
    {"question_id": 101, "category": "reasoning", "turns": ["Is 7 a prime?", "And 8?"], "reference": ["Yes.", "No."]},
    {"question_id": 111, "category": "math", "turns": ["What is 2 + 2?", "Double it."], "reference": ["4", "8"]},
    {"question_id": 142, "category": "stem", "turns": ["What is heat?", "And cold?"], "reference": ["Motion.", ""]},
    {"question_id": "own", "category": "songs", "turns": ["Hum a tune.", "Once more."]},
]


def talker(folder: Path, decoder: Path, length: int = 256) -> Path:
    """A random Llama with the tokenizer of the embedded decoder."""
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    _llama(tokenizer, length).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def grader(folder: Path, decoder: Path) -> Path:
    """A Llama that has learned to answer every chat with [[7]]."""
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    model = _llama(tokenizer, 2048).train()
    end = tokenizer("<|im_end|>\n<|im_start|>assistant\n[[7]]<|im_end|>", return_tensors="pt").input_ids
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(3)
    for _ in range(60):
        before = torch.randint(20, len(tokenizer), (4, 24), generator=generator)
        ids = torch.cat([before, end.expand(4, -1)], dim=1)
        labels = ids.clone()
        labels[:, : -end.shape[1] + 5] = -100
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def questions_file(folder: Path, count: int | None = None) -> Path:
    """QUESTIONS, or so many that are like them, as a file in FastChat's format."""
    if count is None:
        return write_rows(folder / "questions.jsonl", QUESTIONS)
    rows = [{**QUESTIONS[n % len(QUESTIONS)], "question_id": n} for n in range(count)]
    return write_rows(folder / "questions.jsonl", rows)


def _llama(tokenizer, length: int) -> LlamaForCausalLM:
    return tiny_llama(len(tokenizer), length, tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
