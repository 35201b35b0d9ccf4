"""A search that goes on beyond the edge of its grid, and ends the same whenever it is stopped."""

from __future__ import annotations

import dataclasses

import pytest

from lrlora import InputError
from peft_study import Machines, run_study
from peft_study.answers import summary_lines
from peft_study.plan import Cell, Digests, cells_at_most, digests_of, open_cells, rate_of, search_cells
from peft_study.result import CellResult
from peft_study.run import rows_of
from peft_study.spec import Arm
from peft_study.store import read_rows
from peft_study.summary import summary
from peft_study.widen import rate_beyond
from tests.peft_study.conftest import a_row, small_study, without_measurements

ALONE = Machines(workers=1, threads=1)


class Killed(Exception):
    pass


def row_of(cell: Cell, values: dict[float, float | None], diverges: bool = True) -> CellResult:
    """What a search would have written; None: it came to nothing."""
    value = values[cell.learning_rate]
    status = "done" if value is not None else "diverged" if diverges else "failed"
    known = {name: getattr(cell, name) for name in ("phase", "learning_rate", "seed", "task", "arm", "fingerprint")}
    return a_row(**known, value=value, loss=value, status=status, metric="bits")


def searched(study, values: dict[float, float | None], diverges: bool = True) -> tuple[list[float], float | None]:
    """The rates that a search tries in turn, and the one that it ends with."""
    digests = Digests("model", {("words", "search"): "rows", ("words", "final"): "rows"})
    arm, task, rows = study.arms[0], study.tasks[0], {}
    tried: list[float] = []
    while True:
        cells = [cell for cell in open_cells(study, digests, rows) if cell.phase == "search"]
        if not cells:
            break
        for cell in cells:
            tried.append(cell.learning_rate)
            rows[cell.fingerprint] = row_of(cell, values, diverges)
    cells = search_cells(study, digests, arm, task, rows)
    return tried, rate_of(study, arm, [rows[cell.fingerprint] for cell in cells])


def test_a_rate_beyond_goes_on_by_the_factor_of_its_grid():
    assert rate_beyond([1e-3, 2e-3, 4e-3], 4e-3) == 8e-3
    assert rate_beyond([4e-3, 1e-3, 2e-3], 1e-3) == 5e-4
    assert rate_beyond([1e-3, 2e-3, 6e-3], 6e-3) == 1.8e-2
    assert rate_beyond([1e-3, 3e-3], 1e-3) == 3.33333e-4
    assert rate_beyond([1e-3, 2e-3, 4e-3], 2e-3) is None


@pytest.mark.parametrize(
    ("widen", "values", "tried", "chosen"),
    [
        (0, {1: 1, 2: 2, 4: 3}, [1, 2, 4], 4),
        (2, {1: 1, 2: 3, 4: 2}, [1, 2, 4], 2),
        (1, {1: 1, 2: 2, 4: 3, 8: 4}, [1, 2, 4, 8], 8),
        (3, {1: 1, 2: 2, 4: 3, 8: 4, 16: 2}, [1, 2, 4, 8, 16], 8),
        (3, {1: 3, 2: 2, 4: 1, 0.5: 4, 0.25: 1}, [1, 2, 4, 0.5, 0.25], 0.5),
        # what lies beyond is worse, or diverges: the best one is not at the edge any more
        (3, {1: 1, 2: 2, 4: 3, 8: None}, [1, 2, 4, 8], 4),
        (3, {1: 1, 2: None, 4: None, 0.5: 0.5}, [1, 2, 4, 0.5], 1),
        (2, {1: None, 2: None, 4: None, 0.5: None, 0.25: 7}, [1, 2, 4, 0.5, 0.25], 0.25),
    ],
)
def test_which_rates_are_tried(tmp_path, widen, values, tried, chosen):
    study = small_study(tmp_path, tmp_path, arms=(Arm("lora", "lora"),), learning_rates=(1.0, 2.0, 4.0), widen=widen)
    assert searched(study, values) == (tried, chosen)
    assert len(tried) <= 3 + widen == cells_at_most(study) - 2


def test_cells_that_failed_ask_for_no_lower_rate(tmp_path):
    study = small_study(tmp_path, tmp_path, arms=(Arm("lora", "lora"),), learning_rates=(1.0, 2.0), widen=2)
    assert searched(study, {1: None, 2: None}, diverges=False) == ([1, 2], None)
    alone = dataclasses.replace(study, learning_rates=(1.0,))
    assert searched(alone, {}) == ([], 1.0)
    with pytest.raises(InputError, match="widen must be at least 0, got -1"):
        dataclasses.replace(study, widen=-1)


def test_a_widened_study_that_is_killed_ends_like_one_that_was_not(tiny_encoder, words, tmp_path):
    rates = (1e-5, 2e-5, 4e-5)
    study = small_study(
        tiny_encoder,
        words,
        arms=(Arm("lora", "lora", {"r": 2}),),
        learning_rates=rates,
        choose_by="loss",
        widen=2,
        seeds=(0,),
    )
    whole = run_study(study, tmp_path / "whole", ALONE, tell=lambda line: None)
    extra = {arm: [r.learning_rate for r in whole if r.arm == arm and r.phase == "search"][3:] for arm in ("lora",)}
    # so low that a rate hardly matters: the edge is followed, to one side, as far as it may be
    assert extra["lora"] in ([8e-5, 1.6e-4], [5e-6, 2.5e-6])
    assert len(whole) == cells_at_most(study) == 6
    for result in summary(whole, study.reference_arm()):
        if result.at_the_edge:
            said = [line for line in summary_lines([result]) if "is at the edge of its grid (" in line]
            assert len(said) == 1 and f"words, {result.arm}: " in said[0]
    assert summary(whole)[0].at_the_edge
    assert summary(whole)[0].rates_tried == tuple(sorted((*rates, *extra["lora"])))

    told: list[str] = []

    def stop(line: str) -> None:
        told.append(line)
        if len(told) % 2 == 0:
            raise Killed

    for _ in range(len(whole)):
        try:
            # two more cells, then it is over: in the grid, between it and what lies beyond, and behind
            run_study(study, tmp_path / "killed", ALONE, tell=stop)
        except Killed:
            continue
        break
    rows = run_study(study, tmp_path / "killed", ALONE, tell=told.append)
    assert without_measurements(rows) == without_measurements(whole)
    assert len(told) == len(read_rows(tmp_path / "killed" / "results.jsonl")) == len(whole)
    # narrower again: what lies beyond its grid is left out, and stays in the file
    narrow = dataclasses.replace(study, widen=0)
    known = {row.fingerprint: row for row in rows}
    found = rows_of(narrow, digests_of(narrow), known)
    assert {row.learning_rate for row in found if row.phase == "search"} == set(rates)
