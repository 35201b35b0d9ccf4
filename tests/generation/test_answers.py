import json

import pytest

from lrlora import InputError
from lrlora.data.prompts import request
from lrlora.generation import generation_config, load
from lrlora.generation.answers import answer_file, answers

PROMPTS = [request(text) for text in ("one", "one two three", "two", "a longer one than that", "three four")]
NUMBERS = [1, 2, 4, 5, 7]


@pytest.fixture(scope="module")
def model(tiny_decoder):
    return load(str(tiny_decoder))


class Killed(BaseException):
    """Stands for the end of the process."""


def stop_after(monkeypatch, count: int) -> None:
    """End the process after so many answers, in the middle of the next line."""
    from lrlora.saved import part as module

    append, written = module.append_line, []

    def killed(path, line):
        if len(written) == count:
            with path.open("a", encoding="utf-8") as file:
                file.write(line[: len(line) // 2])
            raise Killed
        written.append(line)
        append(path, line)

    monkeypatch.setattr(module, "append_line", killed)


@pytest.mark.parametrize("arguments", [{}, {"do_sample": True, "temperature": 5.0}])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_killed_file_goes_on_and_is_the_same(arguments, count, model, tmp_path, monkeypatch):
    config = generation_config({"max_new_tokens": 6, **arguments})
    settings = (model, PROMPTS, NUMBERS, config, 2, 3)
    whole = answer_file(tmp_path / "whole.jsonl", *settings)
    assert [record["row"] for record in whole] == NUMBERS
    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        stop_after(patch, count)
        with pytest.raises(Killed):
            answer_file(out, *settings)
    assert not out.exists() and (tmp_path / ".out.jsonl.part").exists()
    lines: list[str] = []
    made: list[dict] = []
    from lrlora.saved import part as module

    append = module.append_line
    monkeypatch.setattr(module, "append_line", lambda path, line: (made.append(json.loads(line)), append(path, line)))
    assert answer_file(out, *settings, say=lines.append) == whole
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    # what was there is not generated again
    assert len(made) == len(PROMPTS) - count
    assert bool(count) == any(f"{count} of 5 prompts were answered before" in line for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "whole.jsonl"]


def test_answers_of_other_settings_are_not_mixed(model, tmp_path, monkeypatch):
    out, config = tmp_path / "out.jsonl", generation_config({"max_new_tokens": 3})
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Killed):
            answer_file(out, model, PROMPTS, NUMBERS, config)
    for prompts, other, changed in (
        (PROMPTS, generation_config({"max_new_tokens": 4}), "max_new_tokens"),
        ([*PROMPTS[:-1], request("other")], config, "prompts"),
    ):
        with pytest.raises(InputError, match=f"holds 2 answers that were made with other settings .{changed}"):
            answer_file(out, model, prompts, NUMBERS, other)
    found = answer_file(out, model, PROMPTS, NUMBERS, generation_config({"max_new_tokens": 4}), overwrite=True)
    assert [record["tokens"] for record in found] == [4] * 5
    with pytest.raises(InputError, match="is there already; pass another --out, or --overwrite"):
        answer_file(out, model, PROMPTS, NUMBERS, config)


@pytest.mark.parametrize("arguments", [{}, {"repetition_penalty": 3.0}])
def test_answers_do_not_depend_on_the_batch(arguments, model):
    config = generation_config({"max_new_tokens": 8, **arguments})
    one, many = (answers(model, PROMPTS, NUMBERS, config, batch_size=size) for size in (1, 5))
    assert one == many


def test_a_row_that_cannot_be_answered_is_named(model):
    config = generation_config({})
    with pytest.raises(InputError, match="row 9: the prompt has"):
        answers(model, [request("word " * 200)], [9], config)
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        answers(model, PROMPTS, NUMBERS, config, batch_size=0)
