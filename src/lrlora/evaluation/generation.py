"""Accuracy by generation, as in LLM-Adapters (arXiv:2304.01933): the model writes, the first answer word counts.

Two things differ from its script, and are ours: the most likely token is taken where it searches with 4 beams, and a
row stops as soon as its answer word is complete, which changes no answer.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from lrlora.data.commonsense import COMMONSENSE
from lrlora.data.encode import Template, prompt_ids, uses_chat
from lrlora.saved.tokens import pad_token_id

MAX_NEW_TOKENS = 32
"""The literature's."""


def answer_in(task: str, text: str) -> str | None:
    """The first answer word of the task in a text, in lower case as trained; None without one.

    Example:
        >>> answer_in("arc_c", "the correct answer is answer3, not answer1")
        'answer3'
        >>> answer_in("boolq", "Yes.")
    """
    spec = COMMONSENSE[task]
    # the literature looks for answer1 to answer5 in every task whose word is "answer"
    words = [f"answer{number}" for number in range(1, 6)] if spec.word == "answer" else spec.answers()
    found = re.search("|".join(words), text)
    return found.group() if found else None


def generate_answers(
    model: Any,
    tokenizer: Any,
    task: str,
    rows: list[dict[str, Any]],
    batch_size: int = 8,
    max_new_tokens: int = MAX_NEW_TOKENS,
    template: Template = "auto",
) -> list[str]:
    """What the model writes after the instruction of every row, greedily, up to its answer word."""
    is_chat = uses_chat(tokenizer, template)
    prompts = [prompt_ids(row["instruction"], tokenizer, is_chat) for row in rows]
    # rows of one length together: little padding
    order = sorted(range(len(rows)), key=lambda i: -len(prompts[i]))
    texts = [""] * len(rows)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            written = _generate(model, tokenizer, task, [prompts[i] for i in part], max_new_tokens)
            for i, text in zip(part, written, strict=True):
                texts[i] = text
    finally:
        model.train(was_training)
    return texts


def score_generation(
    model: Any,
    tokenizer: Any,
    task: str,
    rows: list[dict[str, Any]],
    batch_size: int = 8,
    max_new_tokens: int = MAX_NEW_TOKENS,
    template: Template = "auto",
) -> dict[str, float]:
    """Fraction of rows whose first written answer word is the right one; arguments as in `score_commonsense`.

    Returns:
        "acc"; "answered", the fraction of rows with any answer word (the others count as wrong); "rows".
    """
    texts = generate_answers(model, tokenizer, task, rows, batch_size, max_new_tokens, template)
    answers = [answer_in(task, text) for text in texts]
    right = sum(answer == row["answer"] for answer, row in zip(answers, rows, strict=True))
    answered = sum(answer is not None for answer in answers)
    return {"acc": right / len(rows), "answered": answered / len(rows), "rows": len(rows)}


class _Answered(StoppingCriteria):
    """Stops every row whose text holds an answer word."""

    def __init__(self, tokenizer: Any, task: str, start: int) -> None:
        self.tokenizer, self.task, self.start = tokenizer, task, start

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        texts = self.tokenizer.batch_decode(input_ids[:, self.start :], skip_special_tokens=True)
        done = [answer_in(self.task, text) is not None for text in texts]
        return torch.tensor(done, device=input_ids.device)


@torch.no_grad()
def _generate(model: Any, tokenizer: Any, task: str, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
    longest = max(map(len, prompts))
    pad = pad_token_id(tokenizer, model.config)
    # on the left: what is generated follows the prompt at once
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    written = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=tokenizer.eos_token_id
        ),
        stopping_criteria=StoppingCriteriaList([_Answered(tokenizer, task, longest)]),
    )
    return tokenizer.batch_decode(written[:, longest:], skip_special_tokens=True)
