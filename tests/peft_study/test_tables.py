"""Results for a paper: CSV, LaTeX and figures, of the studies that are committed."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from lrlora.cli.main import main
from lrlora.statistics import mean_interval
from peft_study.page import study_section
from peft_study.tables import csv_rows, escaped, latex, plus_minus
from tests.conftest import write_rows
from tests.peft_study.conftest import a_row

RESULTS = Path(__file__).parents[2] / "studies" / "results"


@pytest.fixture
def study(tmp_path):
    shutil.copytree(RESULTS / "confirmation", tmp_path / "confirmation")
    return tmp_path / "confirmation"


def test_the_report_writes_them_beside_the_page(study, tmp_path, capsys):
    files = [tmp_path / name for name in ("page.html", "t.csv", "t.tex", "figures")]
    flags = [word for flag, file in zip(("out", "csv", "latex", "figures"), files, strict=True) for word in
             (f"--{flag}", str(file))]  # fmt: skip
    assert main(["report", str(study), *flags]) == 0
    assert capsys.readouterr().out.splitlines() == [str(file) for file in files]
    with files[1].open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    arms = json.loads((study / "summary.json").read_text())["arms"]
    assert [(row["task"], row["arm"]) for row in rows] == [(arm["task"], arm["arm"]) for arm in arms]
    for row, arm in zip(rows, arms, strict=True):
        assert float(row["value"]) == arm["test"]["mean"] and float(row["value_high"]) == arm["test"]["high"]
        assert row["difference"] == ("" if arm["difference"] is None else str(arm["difference"]["mean"]))
        assert int(row["trainable_parameters"]) == arm["trainable_parameters"]
    text = files[2].read_text()
    assert text.count(r" \\") == len(arms) + 1
    first = arms[0]["test"]
    assert f"${first['mean']:.4f} \\pm {first['high'] - first['mean']:.4f}$" in text
    tasks = list(dict.fromkeys(arm["task"] for arm in arms))
    names = {f"confirmation-{task}-{what}.{kind}" for task in tasks for what in ("arms", "parameters")
             for kind in ("png", "pdf")}  # fmt: skip
    assert {file.name for file in files[3].iterdir()} == names
    for file in files[3].iterdir():
        assert (
            file.read_bytes().startswith(b"%PDF" if file.suffix == ".pdf" else b"\x89PNG")
            and file.stat().st_size > 5000
        )


def test_facts_have_their_columns(tmp_path):
    section = study_section(RESULTS / "facts-encoder")
    assert section is not None
    row = csv_rows([section])[0]
    assert row["facts"] == 2000 and row["bits"] > row["bits_low"] > 0 and row["value"] == row["bits"]


def test_names_are_escaped_and_intervals_that_end_at_a_bound_have_two_ends(tmp_path):
    assert escaped("a_b 50% {x} \\ ^~&#$") == (
        r"a\_b 50\% \{x\} \textbackslash{} \textasciicircum{}\textasciitilde{}\&\#\$"
    )
    (tmp_path / "s_1").mkdir()
    rows = [a_row(arm="lora_a", seed=n, fingerprint=str(n), metric="accuracy", value=v, loss=1.0) for n, v in
            enumerate((0.02, 0.10, 0.30))]  # fmt: skip
    write_rows(tmp_path / "s_1" / "results.jsonl", [row.as_dict() for row in rows])
    section = study_section(tmp_path / "s_1")
    assert section is not None
    text = latex([section])
    assert r"t & lora\_a & accuracy & $0.1400^{+0.3583}_{-0.1400}$ & 3 & -- & -- & -- \\" in text
    assert r"Study s\_1" in text
    assert plus_minus(mean_interval([0.5])) == "$0.5000$"


@pytest.mark.parametrize("flag", ["csv", "latex", "figures"])
def test_without_a_study_they_are_refused(tmp_path, capsys, flag):
    assert main(["report", str(tmp_path), f"--{flag}", str(tmp_path / "x")]) == 2
    assert f"--{flag} is of studies, and no folder here has the results of one" in capsys.readouterr().err


def test_results_are_not_written_over(study, capsys):
    before = (study / "results.jsonl").read_bytes()
    page = str(study.parent / "page.html")
    assert main(["report", str(study), "--out", page, "--latex", str(study / "results.jsonl")]) == 2
    assert "which is read; pass another file" in capsys.readouterr().err
    assert main(["report", str(study), "--out", page, "--figures", str(study)]) == 2
    assert (study / "results.jsonl").read_bytes() == before
