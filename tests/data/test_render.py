"""What of a chat is learned: the assistant's turns to their end, token by token, on real templates and real rows."""

import json
import re

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from lrlora import InputError
from lrlora.data import DataSource, load_task
from lrlora.data.encode import IGNORED, encode_row
from lrlora.data.render import Renderer
from tests.conftest import BENCHMARK_DATA

TURNS = [
    {"role": "system", "content": "Be brief.", "weight": 0},
    {"role": "user", "content": "Name a colour.", "weight": 0},
    {"role": "assistant", "content": "Blue.", "weight": 1},
    {"role": "user", "content": "Another one!", "weight": 0},
    {"role": "assistant", "content": "Red.", "weight": 1},
]
CHATS = BENCHMARK_DATA / "chat"
CHANGING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and not loop.last %}...{% else %}{{ m['content'] }}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(embedded_decoder):
    return AutoTokenizer.from_pretrained(embedded_decoder)


def row_of(messages: list[dict], tools: list | None = None) -> dict:
    """A row as `rows_of` makes it."""
    return {"messages": json.dumps(messages), "tools": json.dumps(tools) if tools else "", "row": 1}


def learned(row: dict, tokenizer, renderer: Renderer | None = None, max_length: int = 4096) -> list[str]:
    """The stretches of text that are learned."""
    found: list[list[int]] = [[]]
    for _, labels in encode_row(row, renderer or Renderer(tokenizer, True), tokenizer, max_length).pieces:
        for label in labels:
            if label != IGNORED:
                found[-1].append(label)
            elif found[-1]:
                found.append([])
    return [tokenizer.decode(each) for each in found if each]


def test_every_answer_is_learned_to_the_end_of_its_turn(tokenizer):
    assert learned(row_of(TURNS), tokenizer) == ["Blue.<|im_end|>", "Red.<|im_end|>"]


def test_a_turn_without_weight_is_not_learned(tokenizer):
    turns = [*TURNS[:2], {**TURNS[2], "weight": 0}, *TURNS[3:]]
    assert learned(row_of(turns), tokenizer) == ["Red.<|im_end|>"]


def test_a_chat_that_the_assistant_begins(tokenizer):
    turns = [{"role": "system", "content": "Be brief.", "weight": 0}, TURNS[2], *TURNS[3:]]
    assert learned(row_of(turns), tokenizer) == ["Blue.<|im_end|>", "Red.<|im_end|>"]


def test_what_is_learned_behind_a_prompt_is_what_would_be_written_there(tokenizer):
    renderer = Renderer(tokenizer, True)
    row = {"instruction": "Say hello.", "input": "", "answer": "Hello!", "row": 1}
    whole, prompt = renderer.of(row).text, renderer.prompt("Say hello.")
    assert whole == prompt + "Hello!<|im_end|>\n"
    assert learned(row, tokenizer) == ["Hello!<|im_end|>"]


def test_plain_headings_hold_a_chat_of_several_turns(tokenizer):
    rendered = Renderer(tokenizer, False).of(row_of(TURNS))
    assert rendered.text == (
        "### System:\nBe brief.\n\n### Instruction:\nName a colour.\n\n### Response:\nBlue.<|im_end|>\n\n"
        "### Instruction:\nAnother one!\n\n### Response:\nRed.<|im_end|>"
    )
    assert learned(row_of(TURNS), tokenizer, Renderer(tokenizer, False)) == ["Blue.<|im_end|>", "Red.<|im_end|>"]


@pytest.mark.parametrize(
    "name", ["qwen2_5", "qwen3", "llama3", "gemma", "phi3", "cohere", "deepseekv3", "glm4moe", "smolvlm"]
)
def test_the_tokens_that_are_learned_are_those_that_trl_marks(tokenizer, name):
    utils = pytest.importorskip("trl.chat_template_utils")
    template = getattr(utils, f"{name}_training_chat_template")
    theirs = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    theirs.chat_template = template
    marks = sorted(set(re.findall(r"<[^\s<>'{}]+>", template)))
    theirs.add_special_tokens({"additional_special_tokens": marks})
    plain = [{key: each[key] for key in ("role", "content")} for each in TURNS if name != "gemma" or each["weight"] or
             each["role"] == "user"]  # fmt: skip
    made = theirs.apply_chat_template(plain, return_assistant_tokens_mask=True, return_dict=True, tokenize=True)
    row = row_of([{**each, "weight": int(each["role"] == "assistant")} for each in plain])
    ((ids, labels),) = encode_row(row, Renderer(theirs, True), theirs, 4096).pieces
    assert ids == made["input_ids"]
    ours, marked = ([i for i, label in enumerate(labels) if label != IGNORED], [
        i for i, is_marked in enumerate(made["assistant_masks"]) if is_marked])  # fmt: skip
    # white space at the edges of a turn: the mark of an answer ends in it, and nothing is written behind the end
    for token in set(ours) ^ set(marked):
        assert not theirs.decode([ids[token]]).strip()


def test_trls_template_for_training_is_taken_where_a_template_changes_earlier_turns(tokenizer):
    utils = pytest.importorskip("trl.chat_template_utils")
    theirs = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    theirs.chat_template = utils.qwen3_chat_template
    renderer = Renderer(theirs, True)
    assert [each.replace("<think>\n\n</think>\n\n", "") for each in learned(row_of(TURNS), theirs, renderer)] == [
        "Blue.<|im_end|>", "Red.<|im_end|>",
    ]  # fmt: skip


def test_where_earlier_turns_change_and_trl_knows_no_better_the_last_answer_is_learned_and_said(tokenizer):
    theirs = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    theirs.chat_template = CHANGING
    renderer = Renderer(theirs, True)
    assert learned(row_of(TURNS), theirs, renderer) == ["Red.<|im_end|>"]
    assert renderer.said == [
        "the chat template changes earlier turns when others follow: of 1 rows only the last answer is learned"
    ]


@pytest.mark.parametrize("answer", ["Blue.", ""])
def test_where_a_template_ends_no_turn_the_end_token_is_learned(tokenizer, answer):
    theirs = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    theirs.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if not loop.last %} {% endif %}"
    )
    theirs.chat_template += "{% endfor %}{% if add_generation_prompt %} assistant: {% endif %}"
    row = row_of([TURNS[1], {**TURNS[2], "content": answer}])
    assert "".join(learned(row, theirs)).strip() == f"{answer}<|im_end|>"


def test_a_template_that_drops_tools_is_refused(tokenizer):
    call = {"role": "assistant", "content": "", "weight": 1,
            "tool_calls": [{"type": "function", "function": {"name": "look_up", "arguments": {"x": 1}}}]}  # fmt: skip
    with pytest.raises(InputError, match="the chat template does not write the tool 'look_up'"):
        Renderer(tokenizer, True).of(row_of([TURNS[1], call]))
    tools = [{"type": "function", "function": {"name": "search", "parameters": {}}}]
    with pytest.raises(InputError, match="does not write the tool 'search'"):
        Renderer(tokenizer, True).of(row_of(TURNS, tools))
    with pytest.raises(InputError, match="plain headings have no tools"):
        Renderer(tokenizer, False).of(row_of([TURNS[1], call]))


def test_real_calls_of_tools_are_learned_with_a_template_that_knows_them(tokenizer):
    utils = pytest.importorskip("trl.chat_template_utils")
    file = CHATS / "glaive_toolcall_en_demo.jsonl.gz"
    if not file.exists():
        pytest.skip("needs real chats: set LRLORA_DATA")
    theirs = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    theirs.chat_template = utils.qwen2_5_chat_template
    rows: Dataset = load_task(DataSource(str(file))).train
    renderer, called = Renderer(theirs, True), 0
    for row in list(rows)[:60]:
        messages = json.loads(row["messages"])
        expected = [each for each in messages if each["role"] == "assistant"]
        found = learned(row, theirs, renderer)
        assert len(found) == len(expected)
        for text, message in zip(found, expected, strict=True):
            assert text.endswith("<|im_end|>") and "<|im_start|>" not in text
            assert message["content"].strip() in text
            for call in message.get("tool_calls", ()):
                called += 1
                assert json.dumps(call["function"]["arguments"], ensure_ascii=False) in text
    assert called > 20 and not renderer.said


@pytest.mark.parametrize("name", ["v1_sft_demo", "alpaca_en_demo"])
def test_of_real_chats_the_answers_and_nothing_else_is_learned(tokenizer, name):
    file = CHATS / f"{name}.jsonl.gz"
    if not file.exists():
        pytest.skip("needs real chats: set LRLORA_DATA")
    for row in list(load_task(DataSource(str(file))).train)[:100]:
        said = row["answer"] if "answer" in row else json.loads(row["messages"])[-1]["content"]
        assert "".join(learned(row, tokenizer)).strip() == f"{said.strip()}<|im_end|>"


def test_a_long_text_continues_in_further_rows_and_loses_nothing(tokenizer):
    text = "Once upon a time there was a rank. " * 40
    pieces = encode_row({"text": text, "row": 1}, Renderer(tokenizer, True), tokenizer, 64).pieces
    assert len(pieces) > 4 and all(ids == labels and len(ids) <= 64 for ids, labels in pieces)
    assert tokenizer.decode([token for ids, _ in pieces for token in ids]) == text + tokenizer.eos_token


def test_of_a_long_chat_the_front_is_cut(tokenizer):
    long = [{**TURNS[1], "content": "Name a colour. " * 50}, *TURNS[2:]]
    row = row_of(long)
    assert learned(row, tokenizer, max_length=32)[-1] == "Red.<|im_end|>"
    with pytest.raises(InputError, match=r"its answer has \d+ tokens, and max_length 4 leaves nothing"):
        learned(row, tokenizer, max_length=4)
