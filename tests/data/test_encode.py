import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from lrlora import InputError
from lrlora.data import TaskData
from lrlora.data.encode import IGNORED, encode, encode_instruction


@pytest.fixture
def tokenizer(tiny_decoder):
    return AutoTokenizer.from_pretrained(tiny_decoder)


ROW = {"instruction": "Name the capital of France.", "input": "Europe", "answer": "paris"}


def test_the_loss_sees_the_answer_and_the_end_alone(tokenizer):
    encoded = encode_instruction(ROW, tokenizer, 64, is_chat=False)
    seen = [label for label in encoded["labels"] if label != IGNORED]
    assert tokenizer.decode(seen) == "paris [SEP]"
    assert encoded["input_ids"][-len(seen) :] == seen
    assert "capital of france. europe" in tokenizer.decode(encoded["input_ids"])
    assert len(encoded["input_ids"]) == len(encoded["labels"]) == len(encoded["attention_mask"])


def test_a_chat_template_is_used_where_there_is_one(tokenizer):
    with pytest.raises(InputError, match="needs a tokenizer with a chat template"):
        encode(_task([ROW] * 2), tokenizer, 64, "chat")
    tokenizer.chat_template = "{% for m in messages %}user said {{ m['content'] }} {% endfor %}then"
    train, _ = encode(_task([ROW] * 2), tokenizer, 64)
    assert "user said name the capital" in tokenizer.decode(train[0]["input_ids"])


@pytest.mark.parametrize("max_length", [1, 2, 5, 9])
def test_too_long_rows_lose_the_front_of_the_prompt_first(tokenizer, max_length):
    encoded = encode_instruction(ROW, tokenizer, max_length, is_chat=False)
    assert len(encoded["input_ids"]) == len(encoded["labels"]) == max_length
    kept = [label for label in encoded["labels"] if label != IGNORED]
    assert tokenizer.decode(kept).startswith("paris")


def test_pairs_are_cut_to_the_length(tokenizer):
    rows = Dataset.from_list([{"text": "a b c d", "text_pair": "e f g h", "label": 1}])
    train, _ = encode(TaskData("t", "classification", rows, rows, ["0", "1"], ("accuracy",), ""), tokenizer, 6)
    assert len(train[0]["input_ids"]) == 6
    assert train[0]["labels"] == 1


def _task(rows: list[dict]) -> TaskData:
    return TaskData("t", "causal", Dataset.from_list(rows), Dataset.from_list(rows), [], (), "")
