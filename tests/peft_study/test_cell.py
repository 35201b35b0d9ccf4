"""A cell is what its fingerprint says."""

import os
import shutil

from peft_study.cell import Bench
from peft_study.plan import (
    digests_of,
    final_cells,
)
from peft_study.workers import prepare_process
from tests.peft_study.conftest import small_study


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
