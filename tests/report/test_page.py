"""The page: whole without a network, safe with any names of layers, and usable by hand and by keyboard."""

import json
import re
import shutil

import pytest

import lrlora
from lrlora.cli import main
from lrlora.files import write_json
from lrlora.report.findings import findings
from lrlora.report.page import charts_of
from lrlora.saved.results import read_run
from peft_study.page import study_section, write_report
from tests.conftest import write_rows
from tests.peft_study.conftest import a_row
from tests.report.planted import write_run

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,900",
)  # fmt: skip
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


def planted_ranks(seed: int) -> list[dict]:
    """Six blocks; attention is 1 above MLP in dW, and not above it in the baseline (null)."""
    kinds = {"attention": 3.0, "mlp": 2.0}
    return [
        {"layer": f"block{block}.{kind}", "block": block, "kind": kind, "module": kind, "stable_rank_ba": 1.5,
         "stable_rank": rank + seed / 100 + block / 10, "rms_over_tau": 0.5, "outside_grid": 0.0}
        for block in range(6)
        for kind, rank in kinds.items()
    ]  # fmt: skip


def write_results(folder) -> None:
    """Two arms of three seeds, one run that failed, one of the search, and half a line."""
    folder.mkdir()
    lines = []
    for arm, gain, size in (("lora", 0.0, 1000), ("lrlora", 0.02, 1100)):
        for seed in range(3):
            value = 0.8 + gain + seed / 1000 + (seed == 1) * gain / 100
            names = {"arm": arm, "method": arm, "task": "rte", "seed": seed, "fingerprint": f"{arm}{seed}"}
            costs = {"trainable_parameters": size, "wall_s": 9.5, "peak_bytes": 2**30, "file_bytes": 1}
            found = {"metric": "accuracy", "value": value, "loss": 1 - value}
            ranks = planted_ranks(seed) if arm == "lrlora" else None
            lines.append(a_row(**names, **found, **costs, ranks=ranks).as_dict())
    lines.append({**lines[0], "seed": 9, "value": None, "status": "failed", "reason": "diverged: <b>NaN</b>"})
    lines.append({**lines[0], "value": 0.1, "phase": "search"})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "results.jsonl").write_text(text + text.splitlines()[0][:50])


@pytest.fixture
def page(tmp_path):
    """A page of three seeds and a study."""
    folders = [write_run(tmp_path / f"seed{seed}", seed=seed) for seed in range(3)]
    write_results(tmp_path / "study")
    assert write_report([*folders, tmp_path / "study"], tmp_path / "report.html") == []
    return tmp_path / "report.html"


def test_it_needs_no_network(page):
    text = page.read_text()
    without_plotly = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", without_plotly)
    assert text.count("plotly.js v") == 1
    assert len(text) < 8e6


def test_names_of_layers_and_folders_are_text(tmp_path):
    evil = "bert.<img src=x onerror=alert(1)></script><script>alert(2)</script>.layer"
    run = write_run(tmp_path / "run<b>", name=evil)
    write_report([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "<img src=x" not in text and "<script>alert" not in text and "run<b>" not in text
    figures = re.search(r'id="figures">(.*?)</script>', text, flags=re.DOTALL)
    assert figures is not None
    assert "&lt;img" in json.dumps(json.loads(figures[1]))


def test_one_seed_says_what_it_cannot_tell(tmp_path):
    write_report([write_run(tmp_path / "run")], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "One seed: this run only" in text and "cannot be concluded from one" in text
    assert "One seed: no interval" in text


def test_c_frozen_stands_at_the_top(tmp_path, capsys):
    run = write_run(tmp_path / "run", c_shift=0.0)
    assert main(["report", str(run)]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(run / "report.html")
    assert "warning: c did not move in 24 of 24 layers" in shown.err
    text = (run / "report.html").read_text()
    assert "<strong>No learned rank beyond LoRA&#39;s</strong>" in text
    assert "Read this first" in text


def test_a_study_is_read_from_its_results(tmp_path):
    assert study_section(tmp_path) is None
    write_results(tmp_path / "study")
    study = study_section(tmp_path / "study")
    assert study is not None
    assert [(r.arm, r.test and r.test.n) for r in study.results] == [("lora", 3), ("lrlora", 3)]
    lora, ours = study.results
    assert lora.difference is None and ours.difference is not None
    assert ours.difference.mean == pytest.approx(0.02, rel=0.01) and ours.difference.is_shown
    assert lora.ranks is None and ours.ranks is not None
    assert ours.ranks.attention_minus_mlp is not None and ours.ranks.attention_minus_mlp_ba is not None
    assert ours.ranks.attention_minus_mlp.mean == pytest.approx(1.0) and ours.ranks.attention_minus_mlp.is_shown
    assert ours.ranks.attention_minus_mlp_ba.mean == 0.0 and not ours.ranks.attention_minus_mlp_ba.is_shown
    assert [question for question, _ in study.answers] == [
        "rte: Does an arm differ from lora in accuracy?",
        "rte: Is SR(dW) beyond SR(BA)?",
        "rte: Attention - MLP of SR(dW)?",
    ]
    assert study.answers[0][1].startswith("shown for 1 of 1: lrlora, +0.0201 [")
    assert study.answers[2][1].startswith("shown for 1 of 1: lrlora, +1.00 [")
    assert study.failed == ["lora, rte, final, rate 0.001, seed 9: diverged: <b>NaN</b>"]
    assert [task for task, _ in study.frontier] == [task for task, _ in study.kinds] == ["rte"]
    write_report([tmp_path / "study"], tmp_path / "study.html")
    text = (tmp_path / "study.html").read_text()
    assert "diverged: &lt;b&gt;NaN" in text and "+0.0201 [" in text


def test_ranks_of_attention_alone_are_no_comparison(tmp_path):
    write_results(tmp_path / "study")
    path = tmp_path / "study" / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()[:-1]]
    for row in rows:
        row["ranks"] = row.get("ranks") and [layer for layer in row["ranks"] if layer["kind"] == "attention"]
    write_rows(path, rows)
    study = study_section(tmp_path / "study")
    assert study is not None
    ranks = study.results[1].ranks
    assert ranks is not None and ranks.attention_minus_mlp is None and ranks.stable_rank.mean > 3
    assert (len(study.answers), study.kinds) == (2, [])
    write_report([tmp_path / "study"], tmp_path / "study.html")
    assert "nan" not in re.sub(r"<script>.*?</script>", "", (tmp_path / "study.html").read_text(), flags=re.DOTALL)


def test_of_a_study_with_a_summary_only_its_own_rows_count(tmp_path):
    write_results(tmp_path / "study")
    kept = ["lora0", "lora1", "lrlora0", "lrlora1", "lrlora2"]
    write_json(tmp_path / "study" / "summary.json", {"study": "mine", "reference": "lrlora", "cells": kept})
    study = study_section(tmp_path / "study")
    assert study is not None and study.name == "mine"
    lora, ours = study.results
    assert ours.difference is None and lora.difference is not None
    assert (lora.difference.n, lora.difference.mean) == (2, pytest.approx(-0.0201))
    write_json(
        tmp_path / "study" / "summary.json", {"study": "mine", "reference": "lora", "cells": ["lora0", "lrlora0"]}
    )
    single = study_section(tmp_path / "study")
    assert single is not None
    assert single.answers[0][1] == "nothing can be concluded: a test needs 2 pairs or more, there is 1"


def test_a_folder_that_is_neither_is_refused(tmp_path):
    write_json(tmp_path / "other.json", {})
    with pytest.raises(lrlora.InputError, match="no adapter in"):
        write_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium: apt-get install chromium chromium-driver")
def test_in_a_browser(page, tmp_path):
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        browser.get(page.as_uri())
        assert len(browser.find_elements(By.CSS_SELECTOR, "#heatmap .heatmaplayer image")) == 3
        for key in ("pairs", "trajectories", "curves", "spectra"):
            assert browser.find_elements(By.CSS_SELECTOR, f"#{key} .scatterlayer .trace"), key

        heading = browser.find_element(By.XPATH, "//table[@id='layers']//th[button='SR(dW)']")
        button = heading.find_element(By.TAG_NAME, "button")
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()
        assert heading.get_attribute("aria-sort") == "ascending"
        assert ranks_in(browser) == sorted(ranks_in(browser))
        assert browser.switch_to.active_element == button
        button.send_keys(Keys.ENTER)
        assert heading.get_attribute("aria-sort") == "descending"
        assert ranks_in(browser) == sorted(ranks_in(browser), reverse=True)

        ground = "return getComputedStyle(document.body).backgroundColor"
        ink = "return getComputedStyle(document.querySelector('#heatmap .ytick text')).fill"
        before = browser.execute_script(ground), browser.execute_script(ink)
        toggle = browser.find_element(By.CSS_SELECTOR, "button.theme")
        browser.execute_script("arguments[0].focus()", toggle)
        toggle.send_keys(Keys.SPACE)
        assert browser.execute_script("return document.documentElement.dataset.theme") == "dark"
        after = browser.execute_script(ground), browser.execute_script(ink)
        assert before[0] != after[0] and before[1] != after[1]

        assert [line for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")] == []
        sent = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
        assert page.as_uri() in urls
        assert [url for url in urls if url.startswith(("http", "ws"))] == []
    finally:
        browser.quit()


def ranks_in(browser) -> list[float]:
    """The column SR(dW), from top to bottom."""
    read = "return [...document.querySelectorAll('#layers tbody tr')].map(r => Number(r.children[3].dataset.value))"
    return browser.execute_script(read)


def test_gates_are_shown_where_there_are_any(tmp_path):
    plain = write_run(tmp_path / "plain")
    runs = [write_run(tmp_path / f"open{seed}", seed=seed, carrier="signs", carrier_start="half") for seed in range(2)]
    assert write_report([plain], tmp_path / "plain.html") == []
    assert "The gates" not in (tmp_path / "plain.html").read_text()
    assert write_report(runs, tmp_path / "gates.html") == []
    text = (tmp_path / "gates.html").read_text()
    assert "The gates" in text and 'id="gates"' in text and 'id="gate_trajectories"' in text
    found = findings([read_run(run) for run in runs])
    assert all(0 < line["gate"].mean < 1 for line in found.table)
    assert found.kinds["gate"].n == 6
    assert "gates" not in charts_of([read_run(plain)], findings([read_run(plain)]))
