"""Worker processes: one GPU each, and a study goes on when they are killed."""

import random
import re
import signal
import time

import psutil
import pytest

from peft_study import run_study
from peft_study.store import read_rows
from peft_study.workers import gpu_of
from tests.peft_study.commands import lines_in, start, study_file, wait_for, workers_of
from tests.peft_study.conftest import ALONE, without_measurements


def test_a_worker_sees_one_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [gpu_of(worker) for worker in range(3)] == ["3", "5", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert gpu_of(0) is None


def test_a_worker_that_is_killed_fails_its_cell_and_another_takes_its_place(whole, tmp_path):
    study, _, rows = whole
    with start(study_file(study, tmp_path), tmp_path / "out", "--workers", "1") as process:
        wait_for(process, lambda: workers_of(process))
        workers_of(process)[0].send_signal(signal.SIGKILL)
        said, _ = process.communicate(timeout=400)
        assert process.returncode == 1
        assert re.search(r"lrlora: 1 of \d+ cells failed, ", said)
    failed = [row for row in read_rows(tmp_path / "out" / "results.jsonl") if row.status == "failed"]
    assert [row.reason for row in failed] == [
        "its worker process was ended by SIGKILL; the system kills so when memory is out"
    ]
    again = run_study(study, tmp_path / "out", ALONE, retry_failed=True, tell=lambda line: None)
    assert without_measurements(again) == without_measurements(rows)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_five_times_at_random_it_ends_where_an_undisturbed_study_ends(whole, tmp_path):
    study, _, rows = whole
    file, out = study_file(study, tmp_path), tmp_path / "out"
    chance = random.Random(int(time.time()))
    counts = []
    for _ in range(5):
        before = lines_in(out / "results.jsonl")
        with start(file, out, "--workers", "2") as process:
            # the workers are there; then, by chance, one more cell is through, or not; then a random moment
            wait_for(process, lambda p=process: len(workers_of(p)) == 2)
            wanted = before + chance.choice((0, 1))
            wait_for(process, lambda least=wanted: lines_in(out / "results.jsonl") >= least)
            time.sleep(chance.uniform(0, 4))
            children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=120)
        assert alive == [], "workers outlive a killed study"
        counts.append(lines_in(out / "results.jsonl"))
    assert counts == sorted(counts)
    with start(file, out, "--workers", "2", "--json") as process:
        said, _ = process.communicate(timeout=400)
        assert process.returncode == 0, said
    written = read_rows(out / "results.jsonl")
    assert without_measurements(written) == without_measurements(rows), counts
    assert {f.name for f in out.iterdir()} == {"results.jsonl", "study.json", "summary.json", "method_comparison"}
