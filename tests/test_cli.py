import json
import subprocess
import sys

import pytest

from lrlora.cli import VERBS, main
from tests.conftest import tiny_bert, write_rows


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command."""
    status = main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def quick(model, data, out, *more: str) -> list[str]:
    """Words of a run of two steps; flags in `more` take the place of those here."""
    flags = {"--model": str(model), "--data": str(data), "--out": str(out), "--max_steps": "2", "--r": "2"}
    return ["train", *(word for flag in flags.items() if flag[0] not in more for word in flag), *more]


def test_without_a_verb_it_says_what_there_is(capsys):
    status, out, _ = run(capsys)
    assert status == 0
    assert "train" in out and "ranks" in out
    assert out.rstrip().endswith("lrlora train")


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_with_a_line_to_paste(capsys, verb):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"example: lrlora {verb} " in capsys.readouterr().out.strip().splitlines()[-1]


def test_train_prints_the_result_and_ranks_reads_it_again(capsys, tiny_encoder, sentences, tmp_path):
    status, out, _ = run(capsys, *quick(tiny_encoder, sentences, tmp_path / "run"), "--compare", "True")
    assert status == 0
    assert "bert.encoder.layer.1.attention.self.query" in out
    assert "LR-LoRA" in out and "LoRA" in out and "SR(BA)" in out
    status, out, _ = run(capsys, "ranks", str(tmp_path / "run"), "--json")
    assert status == 0
    saved = json.loads((tmp_path / "run" / "ranks.json").read_text())
    assert [row["stable_rank"] for row in json.loads(out)] == pytest.approx([row["stable_rank"] for row in saved])


def test_json_is_alone_on_stdout(capsys, tiny_encoder, sentences, tmp_path):
    status, out, _ = run(capsys, *quick(tiny_encoder, sentences, tmp_path / "run"), "--json")
    assert status == 0
    assert json.loads(out)["metrics"]["steps"] == 2


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--target_modules", "q_proj"], "no module of .* matches target_modules .* dense, key, query, value"),
        (["--r", "0"], "r must be a whole number of at least 1, got 0"),
        (["--r", "-8"], "got -8"),
        (["--num_basis", "10"], "num_basis must be odd"),
        (["--tau", "0"], "tau must be"),
        (["--tau", "-0.5"], "tau must be"),
        (["--tau", "soon"], "tau must be a number above 0 or auto, got 'soon'"),
        (["--data", "./missing.jsonl"], "no such file or folder: ./missing.jsonl"),
        (["--model", "./missing"], "no such model folder: ./missing"),
        (["--lr", "1"], "no such flag: --lr"),
        (["--r", "eight"], "invalid int value: 'eight'"),
        (["--learning_rate", "-1"], "learning_rate must be above 0"),
        (["--lr_scheduler", "zigzag"], "zigzag"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, tiny_encoder, sentences, tmp_path, flags, word):
    status, out, err = run(capsys, *quick(tiny_encoder, sentences, tmp_path / "run", *flags))
    assert status == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("lrlora: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    _match(word, lines[0])


def test_a_row_without_its_label_is_named(capsys, tiny_encoder, tmp_path):
    rows = [{"sentence": str(n), **({} if n == 4 else {"label": n % 2})} for n in range(12)]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "dev.jsonl", rows[:3])
    status, _, err = run(capsys, *quick(tiny_encoder, tmp_path, tmp_path / "run"))
    assert status == 2
    _match("row 5 of 12 has no 'label'", err)


def test_a_truncated_adapter_and_a_base_of_other_shapes(capsys, tiny_encoder, sentences, tmp_path):
    assert run(capsys, *quick(tiny_encoder, sentences, tmp_path / "run"))[0] == 0
    config = tiny_bert().config
    config.hidden_size, config.intermediate_size = 64, 96
    type(tiny_bert())(config).bert.save_pretrained(tmp_path / "wide")
    status, _, err = run(capsys, "ranks", str(tmp_path / "run"), "--model", str(tmp_path / "wide"))
    assert (status, len(err.strip().splitlines())) == (2, 1)
    _match("does not fit this base model", err)
    file = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    status, _, err = run(capsys, "ranks", str(tmp_path / "run"))
    assert (status, len(err.strip().splitlines())) == (2, 1)
    _match("not a whole safetensors file", err)


def test_nan_in_the_loss_is_one_line(tiny_encoder, tmp_path):
    rows = [{"sentence": str(n), "label": 1e38 if n == 7 else n / 4} for n in range(24)]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "dev.jsonl", rows[:4])
    more = ["--kind", "regression", "--max_steps", "9", "--batch_size", "4", "--save_steps", "1"]
    flags = quick(tiny_encoder, tmp_path, tmp_path / "run", *more)
    ended = subprocess.run([sys.executable, "-m", "lrlora", *flags], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    _match("became NaN or inf .* last good checkpoint", ended.stderr)
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("verb", "what"), [("study", "study"), ("evaluate", "adapter"), ("merge", "adapter")])
def test_a_flag_before_what_it_is_about_is_explained(capsys, verb, what):
    assert main([verb, "--json"]) == 2
    said = capsys.readouterr().err
    assert f"which {what}? it comes before the flags: lrlora {verb} " in said


def test_an_unknown_verb_and_an_unexpected_error(capsys, monkeypatch):
    status, _, err = run(capsys, "trian")
    assert (status, err) == (2, f"lrlora: no verb 'trian'; there are: {', '.join(VERBS)}\n")

    def break_down(_: list[str]) -> None:
        raise ZeroDivisionError("of our own making")

    monkeypatch.setattr("lrlora.cli.train.run", break_down)
    status, _, err = run(capsys, "train")
    assert status == 1
    _match("ZeroDivisionError: of our own making .*--debug", err)
    status, _, err = run(capsys, "train", "--debug")
    assert status == 1
    assert "Traceback" in err


def _match(pattern: str, text: str) -> None:
    import re

    assert re.search(pattern, text), text
