import json

import pytest
from transformers import AutoTokenizer

from lrlora import InputError
from lrlora.data.encode import encode_prompt, encode_row, uses_chat
from lrlora.data.formats import rows_of
from lrlora.data.prompts import prompts_of, request
from lrlora.data.render import Renderer
from lrlora.data.tables import Table

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "Fine."},
]
ROWS = {
    "messages": {"messages": CHAT},
    "conversations": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
    "prompt": {"prompt": "The sky is", "completion": " blue."},
    "prompt of messages": {"prompt": CHAT[:2], "completion": CHAT[2:3]},
    "instruction": {"instruction": "Translate.", "input": "Hallo", "output": "Hello"},
}
WITHOUT_ANSWERS = {
    "messages": {"messages": CHAT[:-1]},
    "conversations": {"conversations": ROWS["conversations"]["conversations"][:1]},
    "prompt": {"prompt": "The sky is"},
    "prompt of messages": {"prompt": CHAT[:2]},
    "instruction": {"instruction": "Translate.", "input": "Hallo"},
}


def table(row: dict) -> Table:
    return Table("rows", {name: [value] for name, value in row.items()}, [1])


@pytest.mark.parametrize("template", ["chat", "plain"])
@pytest.mark.parametrize("name", ROWS)
def test_the_prompt_is_what_training_has_before_the_last_answer(name, template, embedded_decoder):
    tokenizer = AutoTokenizer.from_pretrained(embedded_decoder)
    renderer = Renderer(tokenizer, uses_chat(tokenizer, template))
    row = {key: value for key, value in rows_of(table(ROWS[name]), None, [])[0].items() if key != "row"}
    ids, labels = encode_row(row, renderer, tokenizer, 10**6).pieces[0]
    # the first token of the last run of labels
    first = max(n for n in range(1, len(ids)) if labels[n] != -100 and labels[n - 1] == -100)
    for given in (ROWS[name], WITHOUT_ANSWERS[name]):
        (prompt,) = prompts_of(table(given), None, "auto", [])
        text, found = encode_prompt(prompt, Renderer(tokenizer, uses_chat(tokenizer, template)), tokenizer)
        assert found == ids[:first]
        assert tokenizer.decode(found) == text


def test_plain_text_is_continued_or_answered():
    notes: list[str] = []
    rows = table({"text": "Once upon a time", "source": "a book"})
    assert prompts_of(rows, None, "auto", notes) == [{"text": "Once upon a time"}]
    assert notes == ["rows: 1 prompts read as plain text; it is continued", "rows: not read: source"]
    assert prompts_of(rows, None, "request", []) == [request("Once upon a time")]
    assert prompts_of(rows, "source", "auto", []) == [{"text": "a book"}]
    assert request("Once", "text") == {"text": "Once"}


def test_what_is_no_prompt_is_refused():
    with pytest.raises(InputError, match=r"no column of prompts, got columns question; .*text_column"):
        prompts_of(table({"question": "why?"}), None, "auto", [])
    with pytest.raises(InputError, match="no column of, got columns text"):
        prompts_of(table({"text": "why?"}), "of", "auto", [])
    with pytest.raises(InputError, match="row 1 of 1 has no message before the answer"):
        prompts_of(table({"messages": CHAT[2:3]}), None, "auto", [])


def test_tools_and_the_system_are_in_the_prompt():
    tool = {"name": "look", "parameters": {"type": "object", "properties": {}}}
    (prompt,) = prompts_of(table({"messages": CHAT[1:2], "system": "Be kind.", "tools": [tool]}), None, "auto", [])
    assert [each["role"] for each in json.loads(prompt["messages"])] == ["system", "user"]
    assert json.loads(prompt["tools"])[0]["function"] == tool


def test_the_end_of_an_answer_is_what_training_teaches(embedded_decoder):
    tokenizer = AutoTokenizer.from_pretrained(embedded_decoder)
    for is_chat in (True, False):
        assert Renderer(tokenizer, is_chat).end() == "<|im_end|>"
    # a template that ends a turn with another token than the tokenizer's end of text
    tokenizer.eos_token = "<|endoftext|>"
    assert Renderer(tokenizer, True).end() == "<|im_end|>"
    assert Renderer(tokenizer, False).end() == "<|endoftext|>"
