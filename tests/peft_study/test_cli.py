"""`lrlora study`: exit statuses, what is said, and what a study that is stopped leaves."""

import json
import re
import signal

import psutil
import pytest

from lrlora.cli.main import main
from peft_study.spec import Arm
from peft_study.store import read_rows
from tests.peft_study.commands import lines_in, start, study_file, wait_for
from tests.peft_study.conftest import small_study


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
