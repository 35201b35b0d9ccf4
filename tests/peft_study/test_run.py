import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import psutil
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lrlora import InputError
from lrlora.cli.main import main
from lrlora.data.encode import encode
from lrlora.evaluation.score import score
from peft_study import Machines, read_study, run_study
from peft_study.answers import answers, summary_lines
from peft_study.cell import Bench
from peft_study.kinds import load_parts
from peft_study.method_comparison import method_comparison_rows
from peft_study.plan import (
    cells_at_most,
    chosen_rate,
    digests_of,
    final_cells,
    is_at_the_edge,
    open_cells,
    search_cells,
)
from peft_study.spec import Arm
from peft_study.store import Results, read_rows
from peft_study.summary import summary
from peft_study.workers import gpu_of, prepare_process
from tests.conftest import write_rows
from tests.peft_study.conftest import a_row, sentence_rows, small_study, without_measurements

KEYS = {
    "study", "arm", "method", "task", "phase", "learning_rate", "seed", "metric", "value", "metrics", "loss",
    "trainable_parameters", "total_parameters", "wall_s", "peak_bytes", "peak_kind", "file_bytes", "steps", "status",
    "reason", "ranks", "versions", "fingerprint",
}  # fmt: skip
ALONE = Machines(workers=1, threads=1)


@pytest.fixture(scope="module")
def whole(tiny_encoder, tmp_path_factory):
    """A study that was not disturbed: the study, its folder, its rows."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "words").mkdir()
    write_rows(folder / "words" / "train.jsonl", sentence_rows()[:64])
    write_rows(folder / "words" / "validation.jsonl", sentence_rows()[64:])
    study = small_study(tiny_encoder, folder / "words")
    told: list[str] = []
    rows = run_study(study, folder / "out", ALONE, tell=told.append)
    assert len(told) == len(rows) == cells_at_most(study) == 8
    return study, folder / "out", rows


def start(file, out, *flags):
    """The command itself, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "lrlora", "study", str(file), "--out", str(out), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def workers_of(process):
    """Its workers; multiprocessing has another child that counts resources."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        # one that ends while it is looked at is no worker any more
        with contextlib.suppress(psutil.NoSuchProcess):  # a ZombieProcess is one as well
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def wait_for(process, what, seconds=200):
    """Until something is so, or the process has ended."""
    until = time.monotonic() + seconds
    while process.poll() is None and not what():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)


def lines_in(path):
    """Whole lines of a file, 0 where there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def study_file(study, folder):
    """The same study as a file."""
    described = {key: value for key, value in dataclasses.asdict(study).items() if value is not None}
    described["arms"] = [
        {"name": arm.name, "method": arm.method, "learning_rates": arm.learning_rates, **arm.fields}
        for arm in study.arms
    ]
    described["tasks"] = [{k: v for k, v in task.items() if v is not None} for task in described["tasks"]]
    file = folder / "study.yaml"
    file.write_text(json.dumps(described))  # JSON is YAML
    assert read_study(file) == study
    return file


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


def test_test_rows_off_the_training_file_leave_the_evaluation_file_alone(tiny_encoder, words):
    usual = small_study(tiny_encoder, words)
    task = dataclasses.replace(usual.tasks[0], train_rows=24, test_rows=8, test_from="training")
    parts = load_parts(usual, task)
    sides: list[Any] = [parts.final.train, parts.search.evaluation, parts.final.evaluation]
    assert [len(side) for side in sides] == [24, 16, 8]
    texts = [set(side["text"]) for side in sides]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 48
    assert set.union(*texts) <= {row["sentence"] for row in sentence_rows()[:64]}
    with pytest.raises(InputError, match=r"has 64 rows to train on, and validation_rows takes 16 of .* test_rows 48"):
        load_parts(usual, dataclasses.replace(task, train_rows=None, test_rows=48))


def test_rows_are_scored_the_same_in_whatever_batches_they_come(tiny_encoder, words):
    study = small_study(tiny_encoder, words)
    data = load_parts(study, study.tasks[0]).final
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=2)
    long = [*data.evaluation.to_list(), {**data.evaluation[0], "text": "warm " * 12}]
    data = dataclasses.replace(data, evaluation=type(data.evaluation).from_list(long))
    _, encoded = encode(data, tokenizer, 32)
    one_by_one = score(model, tokenizer, data, encoded, batch_size=1)
    together = score(model, tokenizer, data, encoded, batch_size=7)
    assert together == pytest.approx(one_by_one, abs=1e-6)
    logits = [model(**tokenizer(row["text"], return_tensors="pt")).logits[0] for row in long]
    right = [int(row.argmax()) == each["label"] for row, each in zip(logits, long, strict=True)]
    assert together["accuracy"] == sum(right) / len(right)


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


def test_failed_cells_are_status_1_and_stay_it(tiny_encoder, words, tmp_path, capsys):
    arms = (Arm("lora", "lora", {"r": 2}), Arm("wild", "lora", {"r": 2}, (1e30, 1e29)))
    study = small_study(tiny_encoder, words, arms=arms, seeds=(0,))
    arguments = ["study", str(study_file(study, tmp_path)), "--out", str(tmp_path / "out"), "--threads", "1"]
    for flags in ([], ["--json"]):
        assert main([*arguments, *flags]) == 1
        shown = capsys.readouterr()
        assert shown.err.splitlines()[-1].startswith("lrlora: 2 of 5 cells failed, ")
        assert "wild" in shown.out
    assert json.loads(shown.out)["arms"][1]["failed"] == 2


@pytest.mark.parametrize(
    ("number", "status", "word", "flags"),
    [
        (signal.SIGTERM, 143, "terminated", ()),
        (signal.SIGINT, 130, "interr", ()),
        (signal.SIGTERM, 143, "terminated", ("--ray",)),
    ],
)
def test_a_study_that_is_stopped_keeps_its_cells_and_ends_its_workers(whole, tmp_path, number, status, word, flags):
    if flags:
        pytest.importorskip("ray", reason='needs ray: pip install "lrlora[cluster]"')
    study, _, _ = whole
    file, out = study_file(study, tmp_path), tmp_path / "out"
    with start(file, out, *flags) as process:
        wait_for(process, lambda: lines_in(out / "results.jsonl") >= 1)
        assert process.poll() is None, process.communicate()[0]
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        said, _ = process.communicate(timeout=200)
    assert process.returncode == status, said
    done = [row for row in read_rows(out / "results.jsonl") if row.status == "done"]
    assert len(done) == lines_in(out / "results.jsonl") >= 1
    told = f"{word}.*; .*results.jsonl holds {len(done)} finished cells; the same command goes on with the others"
    assert re.search(told, said), said
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []


def test_a_cell_of_other_rows_or_another_base_than_its_fingerprint_names_fails(tiny_encoder, words, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_encoder, base)
    study = small_study(base, words)
    digests, arm, task = digests_of(study), study.arms[0], study.tasks[0]
    cells = final_cells(study, digests, arm, task, 1e-3)
    prepare_process(1)
    bench = Bench(study)
    assert bench.run(cells[0]).status == "done"
    # rows that are edited now were read before: the cell is still what it says
    train = words / "train.jsonl"
    before = train.read_text()
    train.write_text(before.replace("good", "dark"))
    assert bench.run(cells[1]).status == "done"
    late = Bench(study).run(cells[1])
    assert (late.status, late.value) == ("failed", None)
    assert late.reason.startswith("the rows of task 'words' changed after the study had begun; the same command")
    train.write_text(before)
    # one byte of the base, its size and time of writing as before
    weights = base / "model.safetensors"
    stat, content = weights.stat(), bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    late = bench.run(cells[1])
    assert late.status == "failed"
    assert late.reason.startswith("the base model's files changed after the study had begun")


def test_a_summary_keeps_to_bounds_and_to_the_smallest_effect():
    def row(arm, seed, value, loss):
        adapter = {"r": 32, "lora_alpha": 16 if arm == "lora" else None}
        named = {"arm": arm, "method": arm, "seed": seed, "metric": "accuracy"}
        return a_row(**named, value=value, loss=loss, wall_s=1.0, adapter=adapter)

    low = [0.02, 0.10, 0.30]
    rows = [row("lora", n, v, 0.5) for n, v in enumerate(low)]
    rows += [row("ours", n, v + 0.001 + n * 1e-5, 0.1) for n, v in enumerate(low)]
    found = summary(rows, "lora")
    assert found[0].test is not None and (found[0].test.low, found[0].test.n) == (0.0, 3)
    (_, answer), *_ = answers(found, "lora")
    assert answer.startswith("no difference is shown, of 1 compared; the largest is ours, +0.0010 [")
    assert "; smaller than 0.002, the smallest effect of interest: ours, +0.0010 [" in answer
    assert answers(summary(rows, "lora", smallest_effect=0.0005), "lora")[0][1].startswith("shown for 1 of 1: ours")
    assert any("at r = 32 the arms have different scales s: 0.5 (lora); 2 (ours)" in x for x in summary_lines(found))


def test_a_worker_sees_one_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [gpu_of(worker) for worker in range(3)] == ["3", "5", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert gpu_of(0) is None


def test_another_process_in_the_same_folder_is_refused(whole):
    study, out, _ = whole
    with Results(out / "results.jsonl"), pytest.raises(InputError, match="another process is running this study"):
        run_study(study, out, ALONE)


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


def test_the_summary_pairs_arms_over_seeds(whole):
    study, _, rows = whole
    lora, ours = summary(rows, study.reference_arm())
    values = {arm: [r.value for r in rows if (r.arm, r.phase) == (arm, "final")] for arm in ("lora", "ours")}
    assert lora.difference is None
    assert lora.test is not None
    assert (lora.test.n, lora.test.mean) == (2, sum(values["lora"]) / 2)
    assert ours.difference is not None
    assert ours.difference.mean == pytest.approx((sum(values["ours"]) - sum(values["lora"])) / 2)
    assert (lora.failed, lora.ranks) == (0, None)
    assert ours.ranks is not None and ours.ranks.seeds == 2
    ranks = [r.ranks for r in rows if (r.arm, r.phase) == ("ours", "final")]
    means = [sum(layer["stable_rank"] for layer in of_seed) / len(of_seed) for of_seed in ranks]
    assert ours.ranks.stable_rank.mean == pytest.approx(sum(means) / 2)
    question, answer = answers([lora, ours], "lora")[0]
    assert question == "words: Does an arm differ from lora in accuracy?"
    assert "ours" in answer
    assert is_at_the_edge((1.0, 2.0, 3.0), 3.0) and not is_at_the_edge((1.0, 2.0, 3.0), 2.0)


def test_rows_in_the_shape_of_method_comparison(whole):
    study, _, rows = whole
    found = method_comparison_rows(study, rows)
    assert len(found) == 4
    for row, final in zip(found, [r for r in rows if r.phase == "final"], strict=True):
        assert set(row) == {"run_info", "train_info", "meta_info"}
        assert row["run_info"]["peft_config"]["r"] == 2
        assert row["train_info"]["num_trainable_params"] == final.trainable_parameters
        assert row["train_info"]["metrics"][-1]["test accuracy"] == final.value
        json.dumps(row, allow_nan=False)


@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_of_this_machine_gives_the_same_rows(whole, tmp_path):
    pytest.importorskip("ray", reason='needs ray: pip install "lrlora[cluster]"')
    study, _, rows = whole
    handlers = []

    def stop(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        machines = Machines(2, 1, ray="local")
        tell = lambda line: handlers.append(signal.getsignal(signal.SIGTERM))  # noqa: E731
        through_ray = run_study(study, tmp_path / "out", machines, tell=tell)
        handlers.append(signal.getsignal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert without_measurements(through_ray) == without_measurements(rows)
    # Ray would put a handler of its own there, and the study could not say what it has kept
    assert set(handlers) == {stop} and len(handlers) == len(rows) + 1
