"""Text to token numbers: single texts and pairs for classification, instruction and answer for language modelling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from lrlora.data.tasks import TaskData
from lrlora.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

Template = Literal["auto", "chat", "plain"]
IGNORED = -100
"""Label of tokens that the loss leaves out."""


def encode(task: TaskData, tokenizer: Any, max_length: int, template: Template = "auto") -> tuple[Dataset, Dataset]:
    """Tokenise both sides of a task; longer texts are cut.

    Returns:
        Train and evaluation rows with input_ids, attention_mask and labels.

    Raises:
        InputError: template "chat" with a tokenizer that has none.
    """
    if task.kind == "causal":
        if template == "chat" and not tokenizer.chat_template:
            raise InputError("template 'chat' needs a tokenizer with a chat template, this one has none; pass 'plain'")
        is_chat = template == "chat" or (template == "auto" and bool(tokenizer.chat_template))

        def convert(row: dict[str, Any]) -> dict[str, list[int]]:
            return encode_instruction(row, tokenizer, max_length, is_chat)
    else:

        def convert(row: dict[str, Any]) -> dict[str, list[int]]:
            encoded = tokenizer(row["text"], row.get("text_pair"), truncation=True, max_length=max_length)
            return {**encoded, "labels": row["label"]}

    return tuple(  # pyright: ignore[reportReturnType]
        rows.map(convert, remove_columns=rows.column_names, desc="tokenising") for rows in (task.train, task.evaluation)
    )


def encode_instruction(row: dict[str, Any], tokenizer: Any, max_length: int, is_chat: bool) -> dict[str, list[int]]:
    """One instruction and its answer; the loss sees the answer (and the end token) alone.

    Where both do not fit into max_length, the front of the prompt is cut, then the end of the answer.
    """
    request = row["instruction"] + (f"\n\n{row['input']}" if row["input"] else "")
    if is_chat:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": request}], add_generation_prompt=True, tokenize=False
        )
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    else:
        prompt_ids = tokenizer(f"### Instruction:\n{request}\n\n### Response:\n")["input_ids"]
        if tokenizer.eos_token_id is not None and prompt_ids[-1:] == [tokenizer.eos_token_id]:
            prompt_ids = prompt_ids[:-1]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    answer_ids = (tokenizer(row["answer"], add_special_tokens=False)["input_ids"] + end)[:max_length]
    room = max_length - len(answer_ids)
    prompt_ids = prompt_ids[len(prompt_ids) - room :] if len(prompt_ids) > room else prompt_ids
    return {
        "input_ids": prompt_ids + answer_ids,
        "attention_mask": [1] * (len(prompt_ids) + len(answer_ids)),
        "labels": [IGNORED] * len(prompt_ids) + answer_ids,
    }
