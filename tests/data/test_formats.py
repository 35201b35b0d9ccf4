"""The formats of rows of a language model: each is read, and what would be learned wrongly is refused."""

import json

import pytest

from lrlora import InputError
from lrlora.data import DataSource, load_task
from lrlora.data.formats import said_of
from tests.conftest import write_rows

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}
PARTS = {"role": "assistant", "content": [{"type": "text", "value": "Hel"}, {"type": "text", "text": "lo!"}]}
FROM = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
CALL = {"from": "function_call", "value": '{"name": "f", "arguments": "{\\"x\\": 1}"}'}
TOOLS = json.dumps([{"name": "f", "parameters": {}}])


def read(tmp_path, row: dict, **fields):
    """The task of a file with this row ten times."""
    return load_task(DataSource(str(write_rows(tmp_path / "rows.jsonl", [row] * 10)), **fields))


def notes(task) -> list[str]:
    """What is said of the task besides that all its rows are one, which is said last."""
    *others, last = task.notes
    assert last.startswith("1 of 1 evaluation rows are training rows as well")
    return others


def messages(task) -> list[dict]:
    """Those of the first row."""
    return json.loads(task.train[0]["messages"])


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"messages": [USER, PARTS]},
        {"conversations": FROM},
        {"conversations": [USER, ANSWER]},
        {"messages": [{**USER, "loss_weight": 0.0}, {**ANSWER, "loss_weight": 1.0}]},
        {"prompt": [USER], "completion": [ANSWER]},
    ],
)
def test_a_chat_is_read_in_all_its_forms(tmp_path, row):
    task = read(tmp_path, row)
    assert task.kind == "causal" and said_of(task.train) == "chats; what the assistant says is learned"
    assert messages(task) == [{**USER, "weight": 0}, {**ANSWER, "weight": 1}]


def test_what_is_not_to_be_learned_has_no_weight(tmp_path):
    task = read(tmp_path, {"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]})
    assert [each["weight"] for each in messages(task)] == [0, 0, 0, 1]
    task = read(tmp_path, {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]})
    assert [each["weight"] for each in messages(task)] == [0, 0, 0, 1]


def test_system_tools_and_calls(tmp_path):
    row = {"system": "Be kind.", "tools": TOOLS,
           "conversations": [FROM[0], CALL, {"from": "observation", "value": {"y": 2}}, FROM[1]]}  # fmt: skip
    task = read(tmp_path, row)
    found = messages(task)
    assert [each["role"] for each in found] == ["system", "user", "assistant", "tool", "assistant"]
    assert found[2]["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    assert (found[3]["content"], [each["weight"] for each in found]) == ('{"y": 2}', [0, 0, 1, 0, 1])
    assert json.loads(task.train[0]["tools"]) == [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert not notes(task)


@pytest.mark.parametrize(
    ("row", "fields", "shape", "said"),
    [
        ({"prompt": "The sky", "completion": " is blue."}, {}, ["prompt", "completion"], "prompts and completions"),
        ({"text": "Once upon a time."}, {}, ["text"], "plain text; all of it is learned"),
        (
            {"q": "2 + 2?", "a": "4"},
            {"kind": "causal", "text_columns": ("q", "a")},
            ["prompt", "completion"],
            "prompts",
        ),
        ({"body": "Once.", "n": 1}, {"kind": "causal", "text_columns": ("body",)}, ["text"], "plain text"),
        ({"instruction": "Hi", "output": "Hello!"}, {}, ["instruction", "input", "answer"], "instructions"),
    ],
)
def test_prompts_and_texts(tmp_path, row, fields, shape, said):
    task = read(tmp_path, row, **fields)
    assert task.train.column_names == [*shape, "row"]
    assert said_of(task.train).startswith(said)


def test_text_with_a_label_is_a_classification_unless_it_is_said_to_be_language(tmp_path):
    rows = [{"text": f"a {n}", "label": n % 2} for n in range(20)]
    file = str(write_rows(tmp_path / "rows.jsonl", rows))
    assert load_task(DataSource(file)).kind == "classification"
    task = load_task(DataSource(file, kind="causal", text_columns=("text",)))
    assert task.train.column_names == ["text", "row"]


def test_columns_that_are_not_read_are_said(tmp_path):
    task = read(tmp_path, {"messages": [USER, ANSWER], "id": 3, "source": "web"})
    assert notes(task) == [f"{tmp_path / 'rows.jsonl'}: not read: id, source"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": [ANSWER], "rejected": [ANSWER], "prompt": [USER]}, "preference pairs .* are no chats"),
        ({"messages": [USER, ANSWER], "label": False}, "chats with a verdict .* trl's KTOTrainer"),
        ({"messages": [USER]}, "row 1 of 10 has no message of the assistant that could be learned"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "no message of the assistant that could be learned"),
        ({"messages": "Hi"}, "needs a list of messages with role and content"),
        ({"messages": []}, "needs a list of messages"),
        ({"messages": [{"role": "narrator", "content": "x"}, ANSWER]}, "message 1 of role 'narrator', needed one of"),
        ({"messages": [USER, {"role": "assistant"}]}, "message 2 without content"),
        (
            {"messages": [USER, {**ANSWER, "weight": 0.5}]},
            r"message 2 of weight 0.5; a message is learned \(1\) or not",
        ),
        ({"messages": [{**USER, "weight": 1}, ANSWER]}, "message 1 of role 'user' with a weight above 0"),
        ({"messages": [USER, {**ANSWER, "content": [{"type": "image"}]}]}, "part of type 'image'; only text is read"),
        ({"messages": [USER, {**ANSWER, "content": 3}]}, "whose content is a int, needed a text"),
        ({"conversations": [FROM[0], {**CALL, "value": "f(1)"}]}, "that is a function call but not JSON"),
        ({"conversations": [FROM[0], {**CALL, "value": "{}"}]}, "a function call without name and arguments"),
        ({"conversations": FROM, "tools": "[{"}, "has tools that are not JSON"),
        ({"conversations": FROM, "tools": "3"}, "needs tools as a list of functions"),
        ({"prompt": "a", "completion": None}, "has no 'completion'"),
    ],
)
def test_a_row_that_cannot_be_learned_as_it_is_meant_is_refused(tmp_path, row, said):
    with pytest.raises(InputError, match=said):
        read(tmp_path, row, kind="causal")


def test_a_file_of_no_format_is_refused_with_an_example_of_each(tmp_path):
    with pytest.raises(InputError) as refused:
        read(tmp_path, {"question": "2 + 2?", "answer": "4"}, kind="causal")
    said = str(refused.value)
    assert "got the columns question, answer" in said and "or pass text_columns" in said
    for example in ('{"messages": [', '{"conversations": [', '{"prompt": ', '{"instruction": ', '{"text": '):
        assert example in said
