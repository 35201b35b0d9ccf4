from dataclasses import replace

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from lrlora import InputError
from lrlora.data import TaskData
from lrlora.data.encode import IGNORED, encode, encode_row
from lrlora.data.render import Renderer


@pytest.fixture
def tokenizer(tiny_decoder):
    return AutoTokenizer.from_pretrained(tiny_decoder)


def encode_instruction(row: dict, tokenizer, max_length: int, is_chat: bool) -> dict[str, list[int]]:
    """Tokens and labels of an instruction."""
    ((ids, labels),) = encode_row(row, Renderer(tokenizer, is_chat), tokenizer, max_length).pieces
    return {"input_ids": ids, "labels": labels}


TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}user said {{ m['content'] }} then "
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)
ROW = {"instruction": "Name the capital of France.", "input": "Europe", "answer": "paris"}


def test_the_loss_sees_the_answer_and_the_end_alone(tokenizer):
    encoded = encode_instruction(ROW, tokenizer, 64, is_chat=False)
    seen = [label for label in encoded["labels"] if label != IGNORED]
    assert tokenizer.decode(seen) == "paris [SEP]"
    assert encoded["input_ids"][-len(seen) :] == seen
    assert "capital of france. europe" in tokenizer.decode(encoded["input_ids"])
    assert len(encoded["input_ids"]) == len(encoded["labels"])


def test_a_chat_template_is_used_where_there_is_one(tokenizer):
    with pytest.raises(InputError, match="needs a tokenizer with a chat template"):
        encode(_task([ROW] * 2), tokenizer, 64, "chat")
    tokenizer.chat_template = TEMPLATE
    train, _ = encode(_task([ROW] * 2), tokenizer, 64)
    assert "user said name the capital" in tokenizer.decode(train[0]["input_ids"])


@pytest.mark.parametrize("is_chat", [False, True])
def test_too_long_rows_lose_the_front_of_the_prompt_and_nothing_else(tokenizer, is_chat):
    tokenizer.chat_template = TEMPLATE
    whole = encode_instruction(ROW, tokenizer, 64, is_chat)["input_ids"]
    least = encode_instruction(ROW, tokenizer, len(whole) - 1, is_chat)
    assert least["input_ids"] == whole[1:]
    assert tokenizer.decode([label for label in least["labels"] if label != IGNORED]) == "paris [SEP]"


def test_a_row_that_would_lose_its_answer_or_its_whole_instruction_is_named(tokenizer):
    # "### Response:" takes five of its tokens, and the answer with its end two
    with pytest.raises(InputError, match=r"answer has 2 tokens, .* max_length 7 leaves nothing .* pass max_length 8"):
        encode_instruction(ROW, tokenizer, 7, is_chat=False)
    assert len(encode_instruction(ROW, tokenizer, 8, is_chat=False)["input_ids"]) == 8
    rows = [ROW, {**ROW, "answer": "paris " * 30}]
    task = TaskData(
        "t", "causal", Dataset.from_list(rows), Dataset.from_list([ROW]), [], (), "", files=("a.jsonl", "b")
    )
    with pytest.raises(InputError, match=r"a.jsonl: row 2: its answer has 31 tokens"):
        encode(task, tokenizer, 16)


def test_what_is_cut_is_counted(tokenizer):
    rows = [{**ROW, "row": 7}, {**ROW, "instruction": "name " * 40, "row": 9}, {**ROW, "answer": " ", "row": 11}]
    task = replace(_task(rows), evaluation=Dataset.from_list(rows[:1]), files=("a.jsonl", "b.jsonl"))
    said = []
    encode(task, tokenizer, 32, say=said.append)
    assert said == [
        "1 of 3 training rows are longer than max_length 32 and were cut; the longest, row 9 of a.jsonl, has 54 tokens",
        "1 of 3 training rows have an empty answer: the model learns to end at once there",
    ]


def test_pairs_are_cut_to_the_length(tokenizer):
    rows = Dataset.from_list([{"text": "a b c d", "text_pair": "e f g h", "label": 1}])
    said = []
    task = TaskData("t", "classification", rows, rows, ["0", "1"], ("accuracy",), "", files=("a.csv", "b.csv"))
    train, _ = encode(task, tokenizer, 6, say=said.append)
    assert said[1] == (
        "1 of 1 evaluation rows are longer than max_length 6 and were cut; the longest, row 1 of b.csv, has 11 tokens"
    )
    assert len(train[0]["input_ids"]) == 6
    assert train[0]["labels"] == 1


def _task(rows: list[dict]) -> TaskData:
    return TaskData("t", "causal", Dataset.from_list(rows), Dataset.from_list(rows), [], (), "")
