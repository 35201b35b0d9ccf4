"""A study from start to end: its rows, what runs again, and what a cell that fails does to the others."""

import dataclasses
from collections import Counter

import pytest

from lrlora import InputError
from peft_study import run_study
from peft_study.answers import summary_lines
from peft_study.plan import (
    cells_at_most,
    chosen_rate,
    digests_of,
    open_cells,
)
from peft_study.spec import Arm
from peft_study.store import Results, read_rows
from peft_study.summary import summary
from tests.peft_study.conftest import ALONE, small_study, without_measurements

KEYS = {
    "study", "arm", "method", "task", "phase", "learning_rate", "seed", "metric", "value", "metrics", "loss",
    "trainable_parameters", "total_parameters", "wall_s", "peak_bytes", "peak_kind", "file_bytes", "steps", "status",
    "reason", "ranks", "versions", "fingerprint",
}  # fmt: skip


def test_every_row_keeps_the_contract_and_every_arm_the_budget(whole):
    study, out, rows = whole
    assert without_measurements(read_rows(out / "results.jsonl")) == without_measurements(rows)
    for row in rows:
        assert set(row.as_dict()) >= KEYS
        assert (row.status, row.reason, row.study, row.metric) == ("done", None, "small", "accuracy")
        assert row.versions["threads"] == "1"
        assert row.peak_kind == "rss_growth"
        assert row.peak_bytes >= 0
        assert (row.ranks is not None) == (row.arm == "ours" and row.phase == "final")
        assert row.eval_rows == (16 if row.phase == "search" else 32)
        assert row.train_rows == 48
    assert Counter((row.arm, row.phase) for row in rows) == {
        (arm, phase): 2 for arm in ("lora", "ours") for phase in ("search", "final")
    }
    for arm in study.arms:
        mine = [row for row in rows if row.arm == arm.name]
        best = chosen_rate(row for row in mine if row.phase == "search")
        assert {row.learning_rate for row in mine if row.phase == "final"} == {best}
        assert {row.learning_rate for row in mine if row.phase == "search"} == {1e-3, 1e-2}


def test_rows_that_were_cut_are_said_once_and_written_down(whole, tmp_path):
    study = dataclasses.replace(
        whole[0],
        arms=whole[0].arms[:1],
        learning_rates=(1e-3,),
        seeds=(0, 1),
        tasks=(dataclasses.replace(whole[0].tasks[0], max_length=4, max_steps=1),),
    )
    study = dataclasses.replace(study, arms=(dataclasses.replace(study.arms[0], learning_rates=()),))
    told: list[str] = []
    rows = run_study(study, tmp_path / "out", ALONE, tell=told.append)
    assert [row.status for row in rows] == ["done", "done"]
    said = [line for line in told if "longer than max_length 4 and were cut" in line]
    assert len(said) == 2 and "48 training rows" in said[0] and "32 evaluation rows" in said[1]
    assert [f"warning: words: {note}" for note in rows[0].notes] == said


def test_a_finished_study_runs_nothing_and_a_changed_one_only_what_changed(whole):
    study, out, rows = whole
    told: list[str] = []
    assert run_study(study, out, ALONE, tell=told.append) == rows
    assert told == []
    digests, known = digests_of(study), {row.fingerprint: row for row in rows}
    more = dataclasses.replace(study, seeds=(0, 1, 2))
    assert [(c.phase, c.seed) for c in open_cells(more, digests, known)] == [("final", 2), ("final", 2)]
    other = dataclasses.replace(study, arms=(study.arms[0], Arm("ours", "lrlora", {"r": 3})))
    assert {(c.arm, c.phase) for c in open_cells(other, digests, known)} == {("ours", "search")}
    moved = dataclasses.replace(study, model="./elsewhere")
    assert open_cells(moved, digests, known) == []  # the digest of the model counts, not where it lies


def test_one_rate_is_taken_without_a_search(tiny_encoder, words, tmp_path):
    arms = (Arm("lora", "lora", {"r": 2}), Arm("other", "lora", {"r": 3}, (1e-2,)))
    study = small_study(tiny_encoder, words, arms=arms, learning_rates=(1e-3,), seeds=(0,))
    rows = run_study(study, tmp_path / "out", ALONE, tell=lambda line: None)
    assert [(row.arm, row.phase, row.learning_rate) for row in rows] == [
        ("lora", "final", 1e-3), ("other", "final", 1e-2),
    ]  # fmt: skip
    assert cells_at_most(study) == len(rows)
    assert [(r.learning_rate, r.validation, r.at_the_edge) for r in summary(rows)] == [
        (1e-3, None, False), (1e-2, None, False),
    ]  # fmt: skip


def test_a_failed_cell_is_recorded_and_the_rest_goes_on(tiny_encoder, words, tmp_path):
    arms = (Arm("lora", "lora", {"r": 2}), Arm("wild", "lora", {"r": 2}, (1e30, 1e29)))
    study = small_study(tiny_encoder, words, arms=arms, seeds=(0,))
    rows = run_study(study, tmp_path / "out", ALONE, tell=lambda line: None)
    assert [(r.arm, r.phase, r.status) for r in rows] == [
        ("lora", "search", "done"), ("lora", "search", "done"), ("lora", "final", "done"),
        ("wild", "search", "failed"), ("wild", "search", "failed"),
    ]  # fmt: skip
    assert all(r.reason.startswith("diverged") for r in rows if r.arm == "wild")
    found = summary(rows)
    assert (found[1].learning_rate, found[1].test, found[1].failed) == (None, None, 2)
    assert any("wild: 2 cells failed, no learning rate came through" in line for line in summary_lines(found))
    told: list[str] = []
    run_study(study, tmp_path / "out", ALONE, tell=told.append)
    assert told == []
    run_study(study, tmp_path / "out", ALONE, retry_failed=True, tell=told.append)
    assert len(told) == 2


def test_another_process_in_the_same_folder_is_refused(whole):
    study, out, _ = whole
    with Results(out / "results.jsonl"), pytest.raises(InputError, match="another process is running this study"):
        run_study(study, out, ALONE)
