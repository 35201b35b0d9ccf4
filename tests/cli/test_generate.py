import json

import pytest

from lrlora.generation.options import names_of_arguments
from tests.cli.commands import match, run
from tests.conftest import write_rows


def test_an_answer_is_printed_as_it_is_written(embedded_decoder, capsys):
    words = ("generate", "embedded-decoder", "--prompt", "What is the capital of France?")
    status, out, err = run(capsys, *words, "--max_new_tokens", "12")
    assert (status, out) == (0, "The capital of France is Paris.\n")
    match("written with the chat template; answers end at '<.im_end.>'", err)
    status, out, err = run(capsys, *words, "--max_new_tokens", "3", "--json")
    assert json.loads(out)["answer"] == "The capital of" and json.loads(out)["finish"] == "length"
    status, out, err = run(capsys, *words, "--max_new_tokens", "3", "--num_beams", "2")
    assert (status, out) == (0, "The capital of\n")
    match("cut at 3 tokens; --max_new_tokens allows more", err)
    # with another seed another answer; with the same one the same
    drawn = [run(capsys, *words, "--do_sample", "--temperature", "9.0", "--seed", seed)[1] for seed in "112"]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_file_of_prompts_is_answered_into_a_file(tiny_decoder, tmp_path, capsys):
    rows = [{"instruction": f"count to {n}", "output": "no", "source": "me"} for n in range(3)]
    file, out = str(write_rows(tmp_path / "prompts.jsonl", rows)), tmp_path / "out" / "answers.jsonl"
    words = ("generate", str(tiny_decoder), "--file", file, "--max_new_tokens", "4", "--batch_size", "2")
    status, printed, err = run(capsys, *words, "--out", str(out))
    assert (status, printed) == (0, f"{out}: 3 answers, 3 of them cut at max_new_tokens\n")
    match(r"3 prompts read as instructions[\s\S]*not read: source", err)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["row"] for record in found] == [1, 2, 3]
    assert [record["prompt"] for record in found] == [
        f"### Instruction:\ncount to {n}\n\n### Response:\n" for n in "012"
    ]
    status, printed, _ = run(capsys, *words)
    assert [json.loads(line) for line in printed.splitlines()] == found
    status, _, err = run(capsys, *words, "--out", str(out))
    assert status == 2 and "--overwrite" in err


def test_plain_text_is_continued_unless_it_is_a_request(tiny_decoder, tmp_path, capsys):
    (tmp_path / "lines.txt").write_text("once upon\nthe red fox\n")
    words = ("generate", str(tiny_decoder), "--file", str(tmp_path / "lines.txt"), "--max_new_tokens", "2")
    prompts = [json.loads(line)["prompt"] for line in run(capsys, *words)[1].splitlines()]
    assert prompts == ["once upon", "the red fox"]
    prompts = [json.loads(line)["prompt"] for line in run(capsys, *words, "--prompt_as", "request")[1].splitlines()]
    assert prompts[0] == "### Instruction:\nonce upon\n\n### Response:\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "needs --prompt TEXT or --file FILE"),
        (("--prompt", "a", "--file", "b"), "one of them"),
        (("--prompt", "a", "--temperature", "0.5"), "do_sample"),
        (("--prompt", "a", "--max_length", "5"), "max_new_tokens"),
        (("--prompt", "a", "--max_new_token", "5"), "did you mean --max_new_tokens"),
        (("--prompt", "a", "--max_new_tokens", "many"), "invalid int value"),
        (("--prompt", "a", "--template", "chat"), "has none; pass 'plain'"),
        (("--prompt", "a", "--dtype", "float8"), "dtype must be one of"),
        (("--prompt", "a", "--text_column", "b"), "--text_column is of --file"),
        (("--file", "none.jsonl"), "cannot read none.jsonl"),
    ],
)
def test_what_cannot_be_generated_is_refused_by_name(words, said, tiny_decoder, capsys):
    status, out, err = run(capsys, "generate", str(tiny_decoder), *words)
    assert (status, out) == (2, "") and said in err.splitlines()[-1]


def test_the_help_names_every_argument(capsys):
    with pytest.raises(SystemExit):
        run(capsys, "generate", "--help")
    text = capsys.readouterr().out
    assert {name for name in names_of_arguments() if name not in text} == set()
