"""run_study(study, out): every cell of a study, in parallel, resumable; and what came out."""

from __future__ import annotations

import collections
import dataclasses
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lrlora.errors import InputError
from lrlora.files import write_json
from peft_study.arms import check_arm
from peft_study.cell import blank_row
from peft_study.plan import Cell, Digests, cells_at_most, digests_of, final_cells, open_cells, rate_of, search_cells
from peft_study.result import CellResult
from peft_study.spec import Study
from peft_study.store import Results
from peft_study.workers import LocalPool, Pool

RESULTS, DESCRIBED = "results.jsonl", "study.json"


@dataclass(frozen=True)
class Machines:
    """Where the cells of a study run.

    Args:
        workers: processes, at least 1; with Ray 0 means: as many as the cluster has room for.
        threads: torch threads of each; None: the cores of this machine, shared out.
        ray: address of a Ray cluster, "local" starts one; None: processes of this machine.
    """

    workers: int = 1
    threads: int | None = None
    ray: str | None = None

    def __post_init__(self) -> None:
        if self.workers < (0 if self.ray else 1):
            raise InputError(f"workers must be at least 1, got {self.workers}")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads must be at least 1, got {self.threads}")

    def threads_of_each(self) -> int:
        """Torch threads of one worker; OMP_NUM_THREADS, where it is set, says how many."""
        chosen = os.environ.get("OMP_NUM_THREADS", "")
        if self.threads is None and chosen.isdigit() and int(chosen) > 0:
            return int(chosen)
        return self.threads or max(1, (os.cpu_count() or 1) // max(1, self.workers))

    def pool(self, study: Study) -> Pool:
        """The workers, not yet started."""
        if self.ray is None:
            return LocalPool(study, self.workers, self.threads_of_each())
        from peft_study.cluster import RayPool

        return RayPool(study, self.workers, self.threads_of_each(), self.ray)


def run_study(
    study: Study,
    out: Path,
    machines: Machines | None = None,
    retry_failed: bool = False,
    tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> list[CellResult]:
    """Run the cells of a study that have not run yet.

    Every arm is tuned first, on rows split off the training file, over as many learning rates as every other arm. Then
    its seeds run at the chosen rate and are measured on the evaluation file. A cell that fails is a row with its
    reason. After a kill at any moment, the same call goes on.

    Args:
        study: what is compared.
        out: folder of results.jsonl and study.json.
        machines: where the cells run; None: one process of this machine.
        retry_failed: run failed cells again.
        tell: gets one line per finished cell.

    Returns:
        The rows of the study's cells, in the order of the study; earlier results of other settings are left out.

    Raises:
        InputError: an arm that cannot be built; rows or a model that are not there; another process at work in `out`.
    """
    for arm in study.arms:
        check_arm(study, arm)
    digests = digests_of(study)
    with Results(out / RESULTS) as results:
        write_json(out / DESCRIBED, dataclasses.asdict(study))
        known = {key: row for key, row in results.rows.items() if not (retry_failed and row.status == "failed")}
        if open_cells(study, digests, known):
            pool = (machines or Machines()).pool(study)
            try:
                _run_cells(study, digests, known, results, pool, tell)
            finally:
                pool.close()
        return rows_of(study, digests, results.rows)


def _run_cells(
    study: Study,
    digests: Digests,
    known: dict[str, CellResult],
    results: Results,
    pool: Pool,
    tell: Callable[[str], None],
) -> None:
    running: set[str] = set()
    told: set[str] = set()
    total = cells_at_most(study)
    while True:
        waiting = collections.deque(c for c in open_cells(study, digests, known) if c.fingerprint not in running)
        for worker in pool.idle():
            if waiting:
                cell = waiting.popleft()
                running.add(cell.fingerprint)
                pool.start(worker, cell)
        if not running:
            return
        for cell, row, death in pool.finished():
            running.remove(cell.fingerprint)
            if row is None:
                row = dataclasses.replace(blank_row(study, cell), reason=death)
            results.append(row)
            known[cell.fingerprint] = row
            for note in dict.fromkeys(f"{cell.task}: {note}" for note in row.notes or ()):
                if note not in told:
                    told.add(note)
                    tell(f"warning: {note}")
            tell(f"{len(rows_of(study, digests, known))}/{total} {_told(cell, row)}")


def rows_of(study: Study, digests: Digests, rows: dict[str, CellResult]) -> list[CellResult]:
    """The rows that are cells of the study as it is now, in its order."""
    found: list[CellResult] = []
    for task in study.tasks:
        for arm in study.arms:
            cells = search_cells(study, digests, arm, task, rows)
            if all(cell.fingerprint in rows for cell in cells):
                rate = rate_of(study, arm, [rows[cell.fingerprint] for cell in cells])
                cells = cells if rate is None else cells + final_cells(study, digests, arm, task, rate)
            found += [rows[cell.fingerprint] for cell in cells if cell.fingerprint in rows]
    return found


def _told(cell: Cell, row: CellResult) -> str:
    head = f"{cell.task} {cell.arm} {cell.phase} rate {cell.learning_rate:g} seed {cell.seed}"
    if row.status == "failed":
        return f"{head}: FAILED: {row.reason}"
    if row.status == "diverged":
        return f"{head}: {row.reason}; this rate has lost"
    loss = "" if row.metric == "loss" else f", loss {row.loss:.4f}"
    return f"{head}: {row.metric} {row.value:.4f}{loss}, {row.wall_s:.1f} s"
