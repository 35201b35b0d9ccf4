import json
from pathlib import Path

import pytest

from lrlora.data.mt_bench import read_questions, turns_of
from lrlora.evaluation.endpoint import KEY
from lrlora.evaluation.judge import PROMPT, estimate, requests_of, score_of, summary
from tests.cli.commands import match, run
from tests.conftest import write_rows
from tests.evaluation.server import answering
from tests.talkers import QUESTIONS, questions_file, talker

SECRET = "sk-of-nobody"


@pytest.fixture(scope="module")
def model(tmp_path_factory, embedded_decoder):
    return str(talker(tmp_path_factory.mktemp("talker"), embedded_decoder))


def answers_file(file: Path) -> Path:
    """Answers as FastChat writes them."""
    rows = [
        {"question_id": q["question_id"], "answer_id": f"id{n}", "model_id": "tiny", "tstamp": 1.0,
         "choices": [{"index": 0, "turns": [f"first {n}", f"second {n}"]}]}
        for n, q in enumerate(QUESTIONS)
    ]  # fmt: skip
    return write_rows(file, rows)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("[[7]]", 7),
        ("Good.\n\n[[10]]\n", 10),
        ("The array [[3]] is right.\n  [[1]] ", 1),
        ("", None),
        ("[[0]]", None),
        ("[[11]]", None),
        ("[[07]]", None),
        ("[[7.5]]", None),
        ("[[7]", None),
        ("[7]", None),
        ("[[ 7 ]]", None),
        ("Rating: [[7]]", None),
        ("**[[7]]**", None),
        ("[[7]]\nThat is all.", None),
        ("[[7]] [[8]]", None),
        ("[[\uff17]]", None),
    ],
)
def test_a_score_is_the_last_line_and_nothing_else(text, score):
    assert score_of(text) == score


def test_the_judge_sees_the_turns_and_the_references_of_what_it_grades(tmp_path):
    questions = read_questions(questions_file(tmp_path))
    answers = [json.loads(line) for line in answers_file(tmp_path / "a.jsonl").read_text().splitlines()]
    requests = requests_of(questions, answers)
    assert [(each.question.number, each.turn) for each in requests[:3]] == [(81, 1), (81, 2), (101, 1)]
    first, second = (each.text for each in requests if each.question.number == 111)
    assert first == (
        "<user turn=1>\nWhat is 2 + 2?\n</user>\n\n<reference turn=1>\n4\n</reference>\n\n"
        "<graded>\nfirst 2\n</graded>\n\n"
        "Grade the answer in <graded>, turn 1 of the conversation."
    )
    assert "<assistant turn=1>\nfirst 2\n</assistant>" in second and "<graded>\nsecond 2\n</graded>" in second
    assert "<reference turn=2>\n8\n</reference>" in second and "<reference turn=1>\n4\n" in second
    assert not any("reference" in each.text for each in requests if each.question.category in ("stem", "writing"))
    assert "[[7]]" in requests[0].messages[0]["content"]
    tokens = sum(len(m["content"]) for each in requests for m in each.messages) // 4
    said = estimate(requests, 100, (3.0, 10.0))
    match(r"10 requests to the judge, about \d+ tokens of prompts and at most 1000 of replies: about", said)
    assert abs(int(said.split("about ")[1].split()[0]) - tokens) <= 10
    assert said.endswith(f"about {tokens * 3 / 1e6:.2f} for the prompts and at most 0.01 for the replies")
    assert estimate(requests, None, None).endswith("tokens of prompts and replies of any length")


def test_means_leave_out_what_has_no_score(tmp_path):
    questions = read_questions(questions_file(tmp_path))[:3]
    scores = {(81, 1): 4, (81, 2): None, (101, 1): 9, (101, 2): 8, (111, 1): None, (111, 2): None}
    judgments = [
        {"question_id": q, "turn": t, "score": s, "finish": "length" if s is None else "stop", "served": "j",
         "tokens_in": 10, "tokens_out": None if q == 111 else 3}
        for (q, t), s in scores.items()
    ]  # fmt: skip
    found = summary(questions, judgments)
    assert found["score"] == pytest.approx((4 + 9 + 8) / 3) and found["turns"] == {"1": 6.5, "2": 8.0}
    assert found["categories"] == {
        "writing": {"score": 4.0, "1": 4.0, "2": None},
        "reasoning": {"score": 8.5, "1": 9.0, "2": 8.0},
        "math": {"score": None, "1": None, "2": None},
    }
    assert found["unparsable"] == [[81, 2], [111, 1], [111, 2]] and found["cut"] == 3
    assert (found["tokens_in"], found["tokens_out"], found["judgments"], found["questions"]) == (60, None, 6, 3)


def test_answers_are_judged_by_a_real_server(judge, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    questions, out = questions_file(tmp_path), tmp_path / "answers.jsonl"
    words = ["evaluate", model, "--mt_bench", str(questions), "--out", str(out), "--max_new_tokens", "8"]
    words += ["--model_id", "tiny"]
    status, printed, _ = run(capsys, *words)
    assert (status, printed.split(";")[0]) == (0, f"{out}: answers to 5 questions")
    before = out.read_bytes()
    graded = [*words, "--judge_url", judge[0], "--judge_model", judge[1], "--judge_max_tokens", "16"]
    status, printed, err = run(capsys, *graded, "--judge_estimate", "--judge_price_in", "1", "--judge_price_out", "2")
    assert (status, printed) == (0, "") and "10 requests to the judge" in err and "for the replies" in err
    status, printed, err = run(capsys, *graded, "--json")
    assert status == 0, err
    assert "nothing is generated" in err and out.read_bytes() == before
    found = json.loads(printed)
    assert (found["score"], found["turns"], found["unparsable"]) == (7.0, {"1": 7.0, "2": 7.0}, [])
    assert set(found["categories"]) == {"writing", "reasoning", "math", "stem", "songs"}
    assert (found["judge"], found["judgments"]) == ([judge[1], PROMPT], 10)
    (file,) = tmp_path.glob("*.judgments.jsonl")
    assert json.loads(file.with_name(file.name.replace(".judgments.jsonl", ".json")).read_text()) == found
    records = [json.loads(line) for line in file.read_text().splitlines()]
    fastchat = {"question_id", "model", "judge", "user_prompt", "judgment", "score", "turn", "tstamp"}
    assert all(fastchat < set(record) for record in records)
    answers = [json.loads(line) for line in before.decode().splitlines()]
    assert turns_of(answers[0])[1] in records[1]["user_prompt"]
    assert sum(record["tokens_in"] for record in records) == found["tokens_in"]
    # the same command again sends nothing, and other settings of the judge are not mixed with these
    status, again, err = run(capsys, *graded, "--json")
    assert (status, json.loads(again)) == (0, found) and "nothing is sent to the judge" in err
    status, _, err = run(capsys, *graded[:-1], "1")
    assert status == 2 and "pass --judge_again to replace them" in err
    # one token is no score
    status, printed, err = run(capsys, *graded[:-1], "1", "--judge_again")
    assert status == 0 and "10 of 10 judgments have no score, and are in no mean: 81 turn 1, 81 turn 2" in printed
    assert "10 judgments were cut at their largest length" in printed
    # the key is nowhere
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 4 and not any(SECRET.encode() in path.read_bytes() for path in written)
    assert SECRET not in err + printed


def test_judging_goes_on_after_an_error(judge, tmp_path, capsys):
    questions, out = questions_file(tmp_path), answers_file(tmp_path / "tiny.jsonl")
    words = ["evaluate", "nowhere/tiny", "--mt_bench", str(questions), "--out", str(out), "--judge_model", judge[1]]
    words += ["--judge_only", "--judge_max_tokens", "16"]
    ok = json.dumps({"choices": [{"message": {"content": "Well.\n[[3]]"}, "finish_reason": "stop"}]})
    with answering((200, {}, ok), (200, {}, ok), (200, {}, ok), (401, {}, "no")) as (url, _):
        status, _, err = run(capsys, *words, "--judge_url", url)
    assert status == 2 and "refuses: 401" in err and "10 requests" in err
    status, printed, err = run(capsys, *words, "--judge_url", judge[0], "--json")
    assert status == 0 and "3 of 10 judgments were there before" in err and "7 requests" in err, err
    found = json.loads(printed)
    assert found["score"] == pytest.approx((3 * 3 + 7 * 7) / 10) and found["tokens_in"] is None
    assert found["categories"]["writing"]["score"] == 3.0 and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--judge_url", "http://localhost:1/v1", "--judge_model", "m"), "--judge_url is of --mt_bench FILE"),
        (("--max_new_tokens", "3"), "--max_new_tokens is of --mt_bench FILE"),
        (("--mt_bench", "q.jsonl", "--judge_url", "http://localhost:1/v1"), "needs --judge_model NAME as well"),
        (("--mt_bench", "q.jsonl", "--judge_model", "m"), "needs --judge_url URL as well"),
        (("--mt_bench", "q.jsonl", "--judge_only"), "needs --judge_url URL as well"),
        (("--mt_bench", "q.jsonl", "--eval_rows", "3"), "--eval_rows is not of --mt_bench"),
        (("--mt_bench", "q.jsonl", "--models", "base"), "--models is not of --mt_bench"),
        (("--mt_bench", "q.jsonl", "--lm_eval", "arc_easy"), "--lm_eval is not of --mt_bench"),
        (("--mt_bench", "q.jsonl", "--template", "plain"), "invalid choice: 'plain'"),
        (("--mt_bench", "none.jsonl"), "cannot read none.jsonl"),
        (("--mt_bench", "q.jsonl", "--out", "answers.txt"), "--out of answers must end in .jsonl"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    questions_file(tmp_path).rename("q.jsonl")
    status, out, err = run(capsys, "evaluate", "nowhere", *words)
    assert (status, out) == (2, "") and said in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--judge_price_in", "1"), "come together"),
        (("--judge_max_tokens", "0"), "judge_max_tokens must be at least 1"),
        (("--judge_body", '{"messages": []}'), "judge_body must not hold messages"),
        (("--judge_body", "[1]"), "judge_body must be an object of JSON"),
        (("--judge_body", '{"max_tokens": "many"}'), "must be a whole number"),
        (("--judge_only", "--overwrite"), "--judge_only generates nothing"),
        (("--judge_timeout", "0"), "above 0 seconds"),
    ],
)
def test_what_a_judge_cannot_take_is_refused(words, said, tmp_path, capsys):
    judge = ("--judge_url", "http://localhost:1/v1", "--judge_model", "m")
    status, out, err = run(capsys, "evaluate", "nowhere", "--mt_bench", str(questions_file(tmp_path)), *judge, *words)
    assert (status, out) == (2, "") and said in err.splitlines()[-1]
