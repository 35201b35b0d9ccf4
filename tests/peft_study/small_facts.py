"""Studies of facts that run in seconds."""

from __future__ import annotations

from pathlib import Path

from peft_study.cell import Bench
from peft_study.plan import digests_of, final_cells
from peft_study.spec import Arm, Study, Task
from tests.conftest import write_rows

LORA = Arm("lora", "lora", {"r": 2})
OPEN = Arm("open", "lrlora", {"r": 2, "carrier": "signs", "carrier_start": "open"})
EVERY = (
    LORA, OPEN, Arm("rslora", "rslora", {"r": 2}), Arm("dora", "dora", {"r": 2}), Arm("hira", "hira", {"r": 2}),
    Arm("randlora", "randlora", {"r": 4}), Arm("vera", "vera", {"r": 4}), Arm("sine", "sine", {"r": 2}),
    Arm("loha", "loha", {"r": 2}), Arm("full", "full"),
)  # fmt: skip


def facts_study(model: Path | str | None, arms=(LORA,), task: dict | None = None, **fields) -> Study:
    """Twenty drawn facts of four answers, three steps, one rate and one seed."""
    chosen = {"kind": "facts", "facts": 20, "values": 4, "max_steps": 3, "batch_size": 10, "max_length": 32}
    return Study(
        study="held",
        arms=tuple(arms),
        tasks=(Task("drawn", **{**chosen, **(task or {})}),),
        **{"learning_rates": (1e-3,), "seeds": (0,), "model": None if model is None else str(model), **fields},
    )


def pairs_file(folder: Path, many: int = 6) -> Path:
    """Pairs of a question and an answer; the third row repeats the first question."""
    rows = [{"english": f"thing {n}", "german": f"ding {n * n}"} for n in range(many)]
    return write_rows(folder / "pairs.jsonl", [*rows[:2], {"english": "thing 0", "german": "other"}, *rows[2:]])


def pairs_of(file: Path, **fields) -> dict:
    columns = {"question_column": "english", "answer_column": "german"}
    return {"facts": None, "values": 16, "data": str(file), **columns, **fields}


def run_one(study: Study, arm: Arm | None = None, bench: Bench | None = None) -> dict:
    """The final cell of an arm at the study's first rate."""
    cell = final_cells(study, digests_of(study), arm or study.arms[0], study.tasks[0], study.learning_rates[0])[0]
    row = (bench or Bench(study)).run(cell)
    assert row.status == "done", (row.reason, row.traceback)
    return row
