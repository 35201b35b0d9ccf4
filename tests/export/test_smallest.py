"""`lrlora export --tolerance`: real runs of tiny models, searched, written, and loaded by PEFT alone."""

import json
import subprocess
import sys
from dataclasses import replace

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from lrlora.cli import main
from lrlora.data import load_task
from lrlora.evaluation.score import score_task
from lrlora.export.compare import run_config
from lrlora.export.tolerance import cuts
from lrlora.saved.lock import lock_file, unlock
from lrlora.saved.tokens import load_tokenizer
from tests.conftest import write_rows

pytestmark = pytest.mark.usefixtures("embedded_encoder")
KINDS = ("lrlora-classification", "lora-classification", "lrlora-causal", "lora-causal")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_encoder, tiny_decoder):
    """A run folder per method and kind of task."""
    folder = tmp_path_factory.mktemp("runs")
    words = "one two three four five six seven eight nine ten".split()
    rows = [
        {"instruction": f"count from {words[n % 10]} by {words[n % 7]}", "output": " ".join([words[n % 10]] * 3)}
        for n in range(160)
    ]
    data = str(write_rows(folder / "rows.jsonl", rows))
    classes = [
        {"text": f"{words[n % 10]} and {words[(7 * n + n // 10) % 10]}", "label": f"{words[n % 10]}"}
        for n in range(160)
    ]
    texts = str(write_rows(folder / "texts.jsonl", classes))
    shared = ["--r", "4", "--rank_steps", "0", "--learning_rate", "2e-2", "--batch_size", "16", "--max_steps", "20"]
    for kind in KINDS:
        method, task = kind.split("-")
        model, rows_of_run = (tiny_decoder, data) if task == "causal" else (tiny_encoder, texts)
        own = ["--method", method, "--out", str(folder / kind), "--model", str(model), "--data", rows_of_run]
        assert main(["train", *own, *shared]) == 0
    return folder


def searched(capsys, *words: str) -> dict:
    capsys.readouterr()
    assert main(["export", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def plain(run, adapter):
    """The export on its base, by transformers and PEFT alone."""
    settings = json.loads((run / "config.json").read_text())["settings"]
    loader, options = transformers.AutoModelForCausalLM, {}
    if "causal" not in run.name:
        loader, options = transformers.AutoModelForSequenceClassification, {"num_labels": 10}
    base = loader.from_pretrained(settings["model"], dtype=torch.float32, **options)
    return peft.PeftModel.from_pretrained(base, adapter).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_export_is_within_the_tolerance_and_scores_what_is_printed(runs, tmp_path, capsys, kind):
    tolerance = 0 if "classification" in kind else 0.002
    found = searched(capsys, str(runs / kind), "--out", str(tmp_path / "out"), "--tolerance", str(tolerance))
    curve = json.loads((tmp_path / "out.tolerance.json").read_text())
    assert (tmp_path / "out.tolerance.png").read_bytes().startswith(b"\x89PNG")
    metric, sign = found["metric"], -1 if found["metric"] == "loss" else 1
    assert metric == ("loss" if "causal" in kind else "accuracy")
    measured = {point["parameters"]: point for point in curve["measured"]}
    assert found["measured"] == len(measured) >= 3
    own = found["adapter"]["choose"][metric]

    def lost(scores: dict) -> float:
        return sign * (own - scores[metric])

    size = found["export"]["parameters"]
    assert all(lost(point["scores"]) <= tolerance + 1e-9 for point in measured.values() if point["parameters"] >= size)
    failed = [point["parameters"] for point in measured.values() if lost(point["scores"]) > tolerance + 1e-9]
    assert failed or "causal" not in kind, "rank 1 was enough: there was nothing to search"
    assert max(failed, default=None) == found["failed_below"]
    below = {point["parameters"] for point in measured.values() if point["parameters"] < size}
    assert set(found["passed_below"]) == below - set(failed)
    # the factors in the file are as many as were printed, and of the ranks that were printed
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert size == sum(value.numel() for name, value in tensors.items() if ".lora_" in name)
    largest = 4 if kind.startswith("lora-") else 48
    assert all(0 < row["rank"] <= w <= largest for row, w in zip(found["export"]["layers"], found["whole_ranks"]))  # noqa: B905
    # PEFT alone gets the printed numbers, on rows that are split here once more
    config = run_config(str(runs / kind))
    task = load_task(config.data_source())
    rows, model = task.evaluation.shuffle(seed=0), plain(runs / kind, tmp_path / "out")
    half = len(rows) // 2
    assert found["rows"]["choose"] == half and found["rows"]["report"] == len(rows) - half
    tokenizer = load_tokenizer(str(runs / kind / "adapter"))
    for side, part in (("choose", range(half)), ("report", range(half, len(rows)))):
        of_side = replace(task, evaluation=rows.select(part))
        scores = score_task(model, tokenizer, of_side, config.max_length, config.template, config.batch_size)
        assert scores[metric] == pytest.approx(found["exported"][side][metric], abs=1e-7), side


def test_the_whole_update_scores_what_the_adapter_scores_and_a_budget_gives_the_same_ranks(runs, tmp_path, capsys):
    run = str(runs / "lrlora-causal")
    found = searched(capsys, run, "--out", str(tmp_path / "out"), "--tolerance", "0.002")
    curve = json.loads((tmp_path / "out.tolerance.json").read_text())
    whole = curve["measured"][-1]
    assert whole["scores"]["loss"] == pytest.approx(curve["adapter"]["choose"]["loss"], abs=1e-5)
    assert whole["relative_error"] < 1e-6 < curve["measured"][0]["relative_error"]
    budget = str(found["export"]["parameters"])
    again = searched(capsys, run, "--out", str(tmp_path / "again"), "--budget", budget)
    assert [row["rank"] for row in again["layers"]] == [row["rank"] for row in found["export"]["layers"]]
    assert again["relative_error"] == pytest.approx(found["export"]["relative_error"], rel=1e-4)


def test_the_table_names_every_layer_and_the_mean_of_each_kind(runs, tmp_path, capsys):
    assert main(["export", str(runs / "lora-causal"), "--out", str(tmp_path / "out"), "--tolerance", "0.05"]) == 0
    out = capsys.readouterr().out
    for word in ("model.layers.1.mlp.down_proj", "mean rank of attention: ", "mean rank of mlp: ", " of 4.0, 6 layers",
                 "loss on the 8 rows that chose", "loss on the 8 rows that report", "sizes were measured"):  # fmt: skip
        assert word in out, word


def test_a_tolerance_that_cannot_be_met_is_said_with_the_number(runs, tmp_path, capsys):
    words = ["export", str(runs / "lrlora-causal"), "--out", str(tmp_path / "out"), "--rank", "1", "--tolerance", "0"]
    capsys.readouterr()
    assert main(words) == 2
    out, err = capsys.readouterr()
    curve = json.loads((tmp_path / "out.tolerance.json").read_text())
    lost = curve["measured"][0]["scores"]["loss"] - curve["adapter"]["choose"]["loss"]
    assert lost > 0 and out == "" and f"worse by {lost:.2g}, more than --tolerance 0; pass a tolerance above" in err
    assert not (tmp_path / "out").exists()
    # what was measured is measured no more, and a tolerance above that number is met
    assert main([*words[:-1], str(lost * 1.01)]) == 0
    assert "sizes measured before, and not measured again: 1" in capsys.readouterr().err


KILLED = """
import os, signal, sys
from lrlora.cli import main
from lrlora.export.tolerance import curve
write = curve.write_json
def then_die(path, content):
    write(path, content)
    if len(content["measured"]) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
curve.write_json = then_die
main(sys.argv[1:])
"""


def test_a_killed_search_goes_on_where_it_was(runs, tmp_path, capsys, monkeypatch):
    words = [str(runs / "lora-causal"), "--tolerance", "0.002", "--out"]
    wanted = searched(capsys, *words, str(tmp_path / "whole"))
    command = [sys.executable, "-W", "ignore", "-c", KILLED, "export", *words, str(tmp_path / "out")]
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == -9
    assert not (tmp_path / "out").exists()
    before = json.loads((tmp_path / "out.tolerance.json").read_text())["measured"]
    assert len(before) == 4
    scored = []
    monkeypatch.setattr(
        cuts.Cuts, "_with", lambda self, ranks, put=cuts.Cuts._with: scored.append(ranks) or put(self, ranks)
    )
    found = searched(capsys, *words, str(tmp_path / "out"))
    # all sizes but the four, and the result on the rows that report
    assert len(scored) == wanted["measured"] - 4 + 1
    for name in ("exported", "adapter", "measured", "failed_below", "passed_below"):
        assert found[name] == wanted[name], name
    assert found["export"]["layers"] == wanted["export"]["layers"]


def test_a_curve_of_something_else_is_refused_and_overwritten_when_asked(runs, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out"), "--tolerance", "0.05"]
    searched(capsys, str(runs / "lora-causal"), *out)
    other = [str(runs / "lora-causal"), *out, "--choose_seed", "1"]
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert main(["export", *other]) == 2
    assert "holds a search with other rows; pass another --out, or --overwrite" in capsys.readouterr().err
    assert searched(capsys, *other, "--overwrite")["rows"]["choose"] == 8
    (tmp_path / "mine.tolerance.png").touch()
    assert main(["export", str(runs / "lora-causal"), "--out", str(tmp_path / "mine"), "--tolerance", "1"]) == 2
    assert "mine.tolerance.png is there already, and no curve next to it" in capsys.readouterr().err


def test_a_second_search_with_the_same_file_is_refused(runs, tmp_path, capsys):
    words = ["export", str(runs / "lora-causal"), "--out", str(tmp_path / "out"), "--tolerance", "0.5"]
    held = lock_file(tmp_path / "out.tolerance.json")
    assert main(words) == 2
    assert "another process is searching with" in capsys.readouterr().err
    unlock(held)
    assert main(words) == 0
    assert {file.name for file in tmp_path.iterdir()} == {"out", "out.tolerance.json", "out.tolerance.png"}


def test_other_rows_can_choose_and_the_same_rows_are_called_optimistic(runs, tmp_path, capsys):
    run = str(runs / "lora-causal")
    rows = [{"instruction": f"count from {n}", "output": "two two two"} for n in range(9)]
    file = str(write_rows(tmp_path / "rows.jsonl", rows))
    words = [run, "--tolerance", "0.5", "--out"]
    found = searched(capsys, *words, str(tmp_path / "a"), "--choose_on", file)
    assert (found["rows"]["choose"], found["rows"]["report"]) == (9, 16)
    assert main(["export", *words, str(tmp_path / "b"), "--choose_on", "all"]) == 0
    out, err = capsys.readouterr()
    assert "the 16 rows that choose are those that report: the number of the export is optimistic" in err
    assert "loss on the 16 rows that chose" in out


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--tolerance", "-0.1"], "tolerance must be at least 0"),
        (["--tolerance", "nan"], "tolerance must be at least 0"),
        (["--tolerance", "0.1", "--budget", "5000"], "--tolerance searches for the number of parameters, got --budget"),
        (["--tolerance", "0.1", "--rank", "0"], "rank must be at least 1"),
        (["--tolerance", "0.1", "--eval_rows", "3"], "has 3 held-out rows, needed at least 4"),
        (["--choose_on", "all"], "--choose_on is of a search, got no --tolerance"),
    ],
)
def test_what_cannot_be_searched_is_one_line_and_status_2(runs, tmp_path, capsys, flags, word):
    capsys.readouterr()
    assert main(["export", str(runs / "lora-causal"), "--out", str(tmp_path / "out"), *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and word in err.splitlines()[-1], err
    assert list(tmp_path.iterdir()) == []
