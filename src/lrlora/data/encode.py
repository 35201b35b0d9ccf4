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
        is_chat = uses_chat(tokenizer, template)

        def convert(row: dict[str, Any]) -> dict[str, list[int]]:
            return encode_instruction(row, tokenizer, max_length, is_chat)
    else:

        def convert(row: dict[str, Any]) -> dict[str, list[int]]:
            encoded = tokenizer(row["text"], row.get("text_pair"), truncation=True, max_length=max_length)
            return {**encoded, "labels": row["label"]}

    return tuple(  # pyright: ignore[reportReturnType]
        rows.map(convert, remove_columns=rows.column_names, desc="tokenising") for rows in (task.train, task.evaluation)
    )


def uses_chat(tokenizer: Any, template: Template) -> bool:
    """Whether instructions are written with the tokenizer's chat template.

    Raises:
        InputError: template "chat" with a tokenizer that has none.
    """
    if template == "chat" and not tokenizer.chat_template:
        raise InputError("template 'chat' needs a tokenizer with a chat template, this one has none; pass 'plain'")
    return template == "chat" or (template == "auto" and bool(tokenizer.chat_template))


def prompt_text(request: str, tokenizer: Any, is_chat: bool) -> str:
    """What stands before an answer, in training as in evaluation."""
    if not is_chat:
        return f"### Instruction:\n{request}\n\n### Response:\n"
    message = [{"role": "user", "content": request}]
    return tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)


def prompt_ids(request: str, tokenizer: Any, is_chat: bool) -> list[int]:
    """`prompt_text` in tokens; a chat template brings its own special tokens."""
    ids = tokenizer(prompt_text(request, tokenizer, is_chat), add_special_tokens=not is_chat)["input_ids"]
    ends = not is_chat and tokenizer.eos_token_id is not None and ids[-1:] == [tokenizer.eos_token_id]
    return ids[:-1] if ends else ids


def encode_instruction(row: dict[str, Any], tokenizer: Any, max_length: int, is_chat: bool) -> dict[str, list[int]]:
    """One instruction and its answer; the loss sees the answer (and the end token) alone.

    Where both do not fit into max_length, the front of the prompt is cut, then the end of the answer.
    """
    request = row["instruction"] + (f"\n\n{row['input']}" if row["input"] else "")
    before = prompt_ids(request, tokenizer, is_chat)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    answer_ids = (tokenizer(row["answer"], add_special_tokens=False)["input_ids"] + end)[:max_length]
    room = max_length - len(answer_ids)
    before = before[len(before) - room :] if len(before) > room else before
    return {
        "input_ids": before + answer_ids,
        "attention_mask": [1] * (len(before) + len(answer_ids)),
        "labels": [IGNORED] * len(before) + answer_ids,
    }
