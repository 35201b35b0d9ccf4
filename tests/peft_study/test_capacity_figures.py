"""What arms hold, in the terminal, on the page and in figures."""

from __future__ import annotations

import json
from pathlib import Path

from lrlora.cli.main import main
from peft_study.capacity_figures import capacity_figures
from peft_study.page import study_section, write_report
from peft_study.store import read_rows
from peft_study.summary import summary

STUDIES = Path(__file__).parents[2] / "studies"


def test_the_command_shows_what_arms_hold_and_so_does_the_page(tiny_encoder, tmp_path, capsys):
    tasks = [{"name": f"d{n}", "kind": "facts", "facts": n, "values": 4, "max_steps": 2} for n in (10, 20)]
    described = {
        "study": "held", "learning_rates": [1e-3], "seeds": [0, 1], "model": str(tiny_encoder), "blocks": 1,
        "tasks": tasks,
        "arms": [{"name": "lora", "method": "lora", "r": 2}, {"name": "four", "method": "lora", "r": 4}],
    }  # fmt: skip
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps(described))  # JSON is YAML
    assert main(["study", str(file), "--dry_run"]) == 0
    assert main(["study", str(file), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "d20: what the arms hold" in shown
    assert "of all facts" in shown
    section = study_section(tmp_path / "out")
    assert section is not None
    assert [words.split(",")[0] for words, _ in section.capacity] == [
        "bits over the number of facts", "bits over trained parameters",
    ]  # fmt: skip
    lines = section.capacity[0][1].data
    assert [(line.name, list(line.x)) for line in lines] == [("lora", [10, 20]), ("four", [10, 20])]
    assert [r.test.mean for r in section.results if r.arm == "lora" and r.test] == list(lines[0].y)
    write_report([tmp_path / "out"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "What the arms hold" in page
    assert 'data-figure="capacity-0-1"' in page


def test_many_arms_are_shown_in_the_order_of_what_they_hold():
    rows = read_rows(STUDIES / "results" / "facts-encoder" / "results.jsonl")
    figures = capacity_figures(summary(rows, "lora-r1", 0.0))
    assert [words.split(",")[0] for words, _ in figures] == [
        "bits over trained parameters",
        "bits of every arm in order",
    ]
    (over,), (dots,) = (figure.data for _, figure in figures)
    assert list(dots.x) == sorted(dots.x) and len(dots.x) == len({row.arm for row in rows})
    assert dots.y[-1] == "lora-r16, 221,184" and "linear-open-r1, 13,848" in dots.y
    # as many colours as there are groups of like numbers, each of them with one name in the other figure
    assert len(set(dots.marker.color)) == sum(name != "" for name in over.text) == 7
