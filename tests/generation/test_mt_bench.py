import itertools
import json
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrlora import InputError
from lrlora.data.mt_bench import read_answers, read_questions, turns_of
from lrlora.generation import load
from lrlora.generation.model import origin_of
from lrlora.generation.mt_bench import Settings, answer_questions, check_answers
from tests.talkers import questions_file, talker


@pytest.fixture(scope="module")
def folder(tmp_path_factory, embedded_decoder):
    return talker(tmp_path_factory.mktemp("talker"), embedded_decoder)


@pytest.fixture(scope="module")
def model(folder):
    return load(str(folder))


@pytest.fixture
def questions(tmp_path):
    return read_questions(questions_file(tmp_path))


def settings(folder, max_new_tokens: int = 8, seed: int = 0) -> Settings:
    return Settings.of(origin_of(str(folder)), max_new_tokens, seed)


def untimed(records: list[dict]) -> list[dict]:
    """What is compared: everything but the time."""
    return [{name: value for name, value in record.items() if name != "tstamp"} for record in records]


def test_the_file_is_fastchat_s_and_answers_depend_on_their_question_alone(folder, model, questions, tmp_path):
    out = tmp_path / "answers.jsonl"
    began = time.time()
    found = answer_questions(out, model, "tiny", questions, settings(folder))
    assert [json.loads(line) for line in out.read_text().splitlines()] == found
    assert read_answers(out, questions, "tiny") == found
    for record, question in zip(found, questions, strict=True):
        assert {"question_id", "answer_id", "model_id", "choices", "tstamp"} < set(record)
        assert record["choices"] == [{"index": 0, "turns": turns_of(record)}]
        assert record["generation"]["temperature"] == question.temperature
        assert began <= record["tstamp"] <= time.time()
    # another order, and only some of them
    some = [questions[n] for n in (4, 0, 2)]
    again = answer_questions(tmp_path / "some.jsonl", model, "tiny", some, settings(folder))
    assert untimed(again) == untimed([found[n] for n in (4, 0, 2)])
    # the seed is that of what is sampled alone
    other = answer_questions(tmp_path / "other.jsonl", model, "tiny", questions, settings(folder, seed=1))
    same = [turns_of(a) == turns_of(b) for a, b in zip(found, other, strict=True)]
    assert same == [question.temperature == 0 for question in questions]
    assert all(a["answer_id"] != b["answer_id"] for a, b in zip(found, other, strict=True))


def test_the_second_prompt_holds_the_first_answer(embedded_decoder, tmp_path):
    (question,) = [q for q in read_questions(questions_file(tmp_path)) if q.category == "math"]
    how = settings(embedded_decoder, 12)
    model = load(str(embedded_decoder))
    (record,) = answer_questions(tmp_path / "a.jsonl", model, "real", [question], how)
    # the same by transformers alone
    tokenizer = AutoTokenizer.from_pretrained(embedded_decoder)
    plain = AutoModelForCausalLM.from_pretrained(embedded_decoder).eval()
    messages: list[dict] = []
    for turn in question.turns:
        messages.append({"role": "user", "content": turn})
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            written = plain.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids.input_ids.shape[1] :]
        messages.append({"role": "assistant", "content": tokenizer.decode(written, skip_special_tokens=True)})
    assert turns_of(record) == [messages[1]["content"], messages[3]["content"]]
    assert all(text.strip() for text in turns_of(record))


KILLED = """
import os, signal, sys, time
from pathlib import Path

import lrlora.cli.evaluate  # once, and not in every process
from lrlora.cli import main

part, words, counts = Path(sys.argv[1]), sys.argv[2:], [0]


def lines():
    return part.read_bytes().count(b"\\n") if part.exists() else 0


def start():
    process = os.fork()
    if not process:
        os._exit(main(words))
    return process


for _ in range(3):
    process = start()
    while lines() < counts[-1] + 4 and os.waitpid(process, os.WNOHANG) == (0, 0):
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    counts.append(lines())
assert os.waitstatus_to_exitcode(os.waitpid(start(), 0)[1]) == 0
print(*counts)
"""


@pytest.mark.slow
def test_a_process_killed_three_times_gives_the_same_answers(folder, model, tmp_path):
    file, out = questions_file(tmp_path, 60), tmp_path / "answers.jsonl"
    questions, part = read_questions(file), tmp_path / ".answers.jsonl.part"
    whole = answer_questions(tmp_path / "whole.jsonl", model, "tiny", questions, settings(folder, 12))
    words = ["evaluate", str(folder), "--mt_bench", str(file), "--out", str(out), "--max_new_tokens", "12"]
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(part), *words, "--model_id", "tiny"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr
    # lines after every kill: the settings and some answers, and not all of them
    counts = [int(word) for word in ended.stdout.splitlines()[-1].split()]
    assert all(after - before >= 4 for before, after in itertools.pairwise(counts)) and counts[-1] < 61
    assert f"{counts[-1] - 1} of 60 questions were answered before" in ended.stderr
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert untimed(found) == untimed(whole)
    # what was answered before is older than what was answered last: it was not generated again
    before, last = found[: counts[-1] - 1], found[counts[-1] - 1 :]
    assert max(record["tstamp"] for record in before) < min(record["tstamp"] for record in last)
    assert not part.exists()


def test_answers_that_are_there_are_checked(folder, model, questions, tmp_path):
    out, how = tmp_path / "answers.jsonl", settings(folder)
    found = answer_questions(out, model, "tiny", questions, how)
    check_answers(out, found, questions, how)
    with pytest.raises(InputError, match="is there already"):
        answer_questions(out, model, "tiny", questions, how)
    with pytest.raises(InputError, match=r"made with other settings \(max_new_tokens\)"):
        check_answers(out, found, questions, settings(folder, 9))
    (folder / "config.json").touch()
    with pytest.raises(InputError, match=r"made with other settings \(the files of the model\)"):
        check_answers(out, found, questions, settings(folder))
    changed = json.loads(json.dumps(found))
    changed[3]["choices"][0]["turns"][1] += "!"
    with pytest.raises(InputError, match="question 142 or its answer was changed since"):
        check_answers(out, changed, questions, how)
    del changed[0]["generation"]
    with pytest.raises(InputError, match=r"question 81 does not say how it was answered; .*--judge_only"):
        check_answers(out, changed, questions, how)


def test_what_cannot_be_answered_is_refused_before_the_work(folder, model, tiny_decoder, questions, tmp_path):
    out = tmp_path / "answers.jsonl"
    with pytest.raises(InputError, match=r"has no chat template.*base that was \(Instruct\)"):
        answer_questions(out, load(str(tiny_decoder)), "tiny", questions, settings(tiny_decoder))
    with pytest.raises(InputError, match="max_new_tokens must be at least 1, got 0"):
        settings(folder, 0)
    # what the error says fits, fits; one more does not
    with pytest.raises(InputError, match=r"question .*: its two turns have .*pass --max_new_tokens") as error:
        answer_questions(out, model, "tiny", questions, settings(folder, 256))
    most = int(str(error.value).split("--max_new_tokens ")[1].split()[0])
    with pytest.raises(InputError, match=f"pass --max_new_tokens {most} or fewer"):
        answer_questions(out, model, "tiny", questions, settings(folder, most + 1))
    assert not list(tmp_path.glob(".answers*"))
    # the second answer has the room that is left, and it is said where that was too little
    lines: list[str] = []
    fewer = most * 2 // 3
    (record,) = answer_questions(out, model, "tiny", questions[:1], settings(folder, fewer), say=lines.append)
    assert record["generation"]["finish"] == ["length", "length"]
    assert record["generation"]["tokens"][0] == fewer > record["generation"]["tokens"][1]
    assert lines[-1] == "1 of 1 questions have an answer cut at its largest length: 81"
