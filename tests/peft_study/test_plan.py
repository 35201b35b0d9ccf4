"""How a rate is chosen, and that no test row is seen by the search."""

import dataclasses
from collections import Counter

import pytest

from peft_study.cell import Bench
from peft_study.plan import (
    chosen_rate,
    digests_of,
    open_cells,
    search_cells,
)
from peft_study.workers import prepare_process
from tests.conftest import write_rows
from tests.peft_study.conftest import a_row, sentence_rows, without_measurements


def test_how_a_rate_is_chosen():
    def row(rate, value, loss, status="done", phase="search", metric="accuracy"):
        return a_row(phase=phase, learning_rate=rate, value=value, loss=loss, status=status, metric=metric)

    assert chosen_rate([row(1, 0.5, 1.0), row(2, 0.6, 2.0)]) == 2
    assert chosen_rate([row(1, 0.6, 1.0), row(2, 0.6, 2.0)]) == 1
    assert chosen_rate([row(2, 0.6, 1.0), row(1, 0.6, 1.0)]) == 1
    # a mean over seeds, not the luckiest of them
    assert chosen_rate([row(1, 0.6, 1.0), row(1, 0.6, 1.0), row(2, 0.9, 1.0), row(2, 0.2, 1.0)]) == 1
    assert chosen_rate([row(1, 1.5, 1.5, metric="loss"), row(2, 0.5, 0.5, metric="loss")]) == 2
    assert chosen_rate([row(1, 0.2, 1.0), row(2, 0.9, 1.0), row(2, None, None, "failed")]) == 1
    assert chosen_rate([row(1, None, None, "failed")]) is None
    assert chosen_rate([row(1, 0.6, 2.0), row(2, 0.5, 1.0)], "loss") == 2
    with pytest.raises(AssertionError):
        chosen_rate([row(1, 0.5, 1.0, phase="final")])


def test_no_test_row_is_seen_by_the_search(whole, tmp_path):
    study, _, rows = whole
    (tmp_path / "words").mkdir()
    poisoned = [{"sentence": "poison " * 9, "label": 1 - row["label"]} for row in sentence_rows()[64:]]
    write_rows(tmp_path / "words" / "train.jsonl", sentence_rows()[:64])
    write_rows(tmp_path / "words" / "validation.jsonl", poisoned)
    data = dataclasses.replace(study.tasks[0], data=str(tmp_path / "words"))
    poisoned_study = dataclasses.replace(study, tasks=(data,))
    digests = digests_of(poisoned_study)
    assert digests.rows["words", "final"] != digests_of(study).rows["words", "final"]
    prepare_process(1)
    bench = Bench(poisoned_study)
    for arm in study.arms:
        again = [bench.run(cell) for cell in search_cells(poisoned_study, digests, arm, data)]
        before = [row for row in rows if row.arm == arm.name and row.phase == "search"]
        assert without_measurements(again) == without_measurements(before)
        assert chosen_rate(again) == chosen_rate(before)
    # while the result does depend on them: every final cell runs again
    waiting = open_cells(poisoned_study, digests, {row.fingerprint: row for row in rows})
    assert Counter(cell.phase for cell in waiting) == {"final": 4}


def test_seeds_are_run_in_turn_for_all_arms_behind_every_search(whole):
    study, _, rows = whole
    digests = digests_of(study)
    searched = {row.fingerprint: row for row in rows if row.phase == "search"}
    waiting = open_cells(study, digests, searched)
    first, second = study.arms
    assert [(cell.seed, cell.arm) for cell in waiting] == [
        (seed, arm.name) for seed in study.seeds for arm in (first, second)
    ]
    # one arm's search is not finished: it comes before the other's results
    is_theirs = [row.fingerprint for row in rows if row.phase == "search" and row.arm == second.name]
    waiting = open_cells(study, digests, {key: row for key, row in searched.items() if key != is_theirs[0]})
    assert [(cell.arm, cell.phase) for cell in waiting] == [
        (second.name, "search"), *((first.name, "final") for _ in study.seeds)
    ]  # fmt: skip
