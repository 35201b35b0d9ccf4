"""A study that runs in seconds: the tiny encoder, sentences of two kinds, few steps, one thread."""

from __future__ import annotations

from pathlib import Path

import pytest

from peft_study import Machines, run_study
from peft_study.plan import cells_at_most
from peft_study.result import CellResult
from peft_study.spec import Arm, Study, Task
from tests.conftest import write_rows

WORDS = ("good", "bright", "kind", "warm"), ("bad", "dark", "cruel", "cold")
# what a cell's result does not determine
MEASURED = ("wall_s", "peak_bytes", "versions")
ALONE = Machines(workers=1, threads=1)
GOOD = """\
study: mine
learning_rates: [1e-3, 2e-3]
seeds: [0, 1, 2]
tasks:
  - {name: rte, data: glue}
arms:
  - {name: lora, method: lora, r: 4}
  - name: ours
    method: lrlora
    tau: auto
    learning_rates: [5e-4, 1e-3]
"""


def sentence_rows() -> list[dict]:
    """Sentences of two kinds, in turn."""
    return [
        {"sentence": f"a {group[i]} and {group[j]} day number {n}", "label": label}
        for n in range(3)
        for i in range(4)
        for j in range(4)
        for label, group in enumerate(WORDS)
    ]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A folder with train.jsonl and validation.jsonl."""
    folder = tmp_path / "words"
    folder.mkdir()
    write_rows(folder / "train.jsonl", sentence_rows()[:64])
    write_rows(folder / "validation.jsonl", sentence_rows()[64:])
    return folder


def small_study(model: Path, data: Path, **fields) -> Study:
    """LoRA and LR-LoRA, two rates, two seeds, three steps."""
    chosen = {
        "study": "small",
        "arms": (Arm("lora", "lora", {"r": 2}), Arm("ours", "lrlora", {"r": 2, "tau": "auto", "tau_warmup_steps": 1})),
        "tasks": (Task("words", data=str(data), validation_rows=16, max_steps=3, batch_size=8, max_length=16),),
        "learning_rates": (1e-3, 1e-2),
        "seeds": (0, 1),
        "search_seeds": (7,),
        "model": str(model),
        **fields,
    }
    return Study(**chosen)


def a_row(**fields) -> CellResult:
    """A row of a final cell that is done, with some fields as they are given."""
    names = {"study": "s", "arm": "lora", "method": "lora", "task": "t", "phase": "final", "status": "done"}
    whole = {**names, "learning_rate": 1e-3, "seed": 0, "versions": {}, "fingerprint": "a", **fields}
    return CellResult(**whole)


def without_measurements(rows) -> list[dict]:
    """Rows without times, memory and versions, in a fixed order."""
    kept = [{key: value for key, value in row.as_dict().items() if key not in MEASURED} for row in rows]
    return sorted(kept, key=lambda row: row["fingerprint"])


@pytest.fixture(scope="session")
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
