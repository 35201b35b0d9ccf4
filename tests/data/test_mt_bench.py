import gzip
import json
from collections import Counter

import pytest

from lrlora import InputError
from lrlora.data.mt_bench import Question, read_answers, read_questions, turns_of
from tests.conftest import BENCHMARK_DATA, write_rows
from tests.talkers import QUESTIONS, questions_file


def test_questions_are_read_with_the_references_that_a_judge_is_shown(tmp_path):
    lines: list[str] = []
    found = read_questions(questions_file(tmp_path), lines.append)
    assert found[1] == Question(101, "reasoning", ("Is 7 a prime?", "And 8?"), ("Yes.", "No."))
    assert [question.references for question in found] == [("", ""), ("Yes.", "No."), ("4", "8"), ("", ""), ("", "")]
    # 142 is of a category whose references FastChat does not show
    assert lines == [
        f"{tmp_path / 'questions.jsonl'}: references of 1 questions are not used: a judge is shown those of math, "
        "reasoning, coding alone, as in FastChat"
    ]
    assert [question.temperature for question in found] == [0.7, 0.0, 0.0, 0.1, 0.7]
    packed = tmp_path / "questions.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "questions.jsonl").read_bytes()))
    assert read_questions(packed) == found


def test_the_real_questions_are_read():
    file = BENCHMARK_DATA / "chat" / "mt_bench_question.jsonl.gz"
    if not file.exists():
        pytest.skip("LRLORA_DATA names no folder with chat/mt_bench_question.jsonl.gz")
    found = read_questions(file)
    assert [question.number for question in found] == list(range(81, 161))
    assert set(Counter(question.category for question in found).values()) == {10}
    temperatures = {question.category: question.temperature for question in found}
    assert temperatures == {
        "writing": 0.7, "roleplay": 0.7, "reasoning": 0.0, "math": 0.0, "coding": 0.0, "extraction": 0.0, "stem": 0.1,
        "humanities": 0.1,
    }  # fmt: skip
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        given = {row["question_id"]: row.get("reference") for row in map(json.loads, lines)}
    shown = {question.number: question.references for question in found if any(question.references)}
    assert shown == {n: tuple(each) for n, each in given.items() if each and 101 <= n <= 130}
    assert len(shown) == 29


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"question_id": None}, "row 1: question_id must be a number or a text, got None"),
        ({"category": 3}, "category must be a text such as writing, got 3"),
        ({"turns": ["one"]}, "turns must be a list of 2 texts, got"),
        ({"turns": ["one", " "]}, "turns must be a list of 2 texts, got"),
        ({"turns": "one"}, "turns must be a list of 2 texts, got"),
        ({"reference": "4"}, "reference must be a list of at most 2 texts, got"),
    ],
)
def test_what_is_no_question_is_named(fields, said, tmp_path):
    file = write_rows(tmp_path / "q.jsonl", [{**QUESTIONS[2], **fields}])
    with pytest.raises(InputError, match=said):
        read_questions(file)


def test_files_that_are_none_are_refused(tmp_path):
    twice = write_rows(tmp_path / "twice.jsonl", [QUESTIONS[0], QUESTIONS[0]])
    for file, said in (
        (twice, "row 2: question_id 81 is there twice"),
        (write_rows(tmp_path / "empty.jsonl", []), "has no rows"),
        (tmp_path / "none.jsonl", "cannot read .*none.jsonl: No such file"),
        (tmp_path / "questions.csv", "needed .jsonl or .jsonl.gz"),
    ):
        with pytest.raises(InputError, match=said):
            read_questions(file)


def answer(number, turns=("a", "b"), model_id="m") -> dict:
    return {"question_id": number, "model_id": model_id, "choices": [{"index": 0, "turns": list(turns)}]}


def test_answers_are_read_in_the_order_of_the_questions(tmp_path):
    questions, lines = read_questions(questions_file(tmp_path))[:2], []
    rows = [answer(101), answer(7), answer(81, ("c", "d"))]
    rows[0]["choices"].append({"index": 1, "turns": ["e", "f"]})
    found = read_answers(write_rows(tmp_path / "a.jsonl", rows), questions, "m", lines.append)
    assert [turns_of(record) for record in found] == [["c", "d"], ["a", "b"]]
    assert "1 questions have several answers" in lines[0] and "1 answers to other questions" in lines[1]
    for rows, said in (
        ([answer(81)], "no answer to question 101 .1 such questions"),
        ([answer(81), answer(101, model_id="n")], "row 2 is an answer of 'n', needed 'm'; pass --model_id"),
        ([answer(81, ("a",))], "row 1: choices must hold 2 turns"),
        ([answer(81), answer(81)], "row 2: question_id 81 is there twice"),
        ([{"question_id": 81}], "row 1: choices must hold 2 turns, both texts, got None"),
    ):
        with pytest.raises(InputError, match=said):
            read_answers(write_rows(tmp_path / "a.jsonl", rows), questions, "m")
