"""Which cells a study consists of, which rate a search chooses, and what is left to do."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from transformers import AutoConfig

from lrlora.errors import InputError
from lrlora.saved.identity import digest_of_model
from lrlora.saved.local import check_local
from peft_study.arms import fields_of
from peft_study.kinds import kind_of, load_parts
from peft_study.result import PHASES, CellResult, Phase
from peft_study.rows import fingerprint
from peft_study.spec import Arm, Study, Task
from peft_study.widen import rate_beyond

LOWER_IS_BETTER = ("loss", "nats_per_fact")
"""Metrics of which the lowest value is chosen."""


@dataclass(frozen=True)
class Cell:
    """One training run.

    Args:
        arm, task: names in the study.
        phase: "search", measured on validation rows, or "final", on test rows.
        learning_rate, seed: of this run.
        fingerprint: identity of its result.
        rows, model: digests of what it reads, parts of that identity; a worker that reads others fails the cell.
    """

    arm: str
    task: str
    phase: Phase
    learning_rate: float
    seed: int
    fingerprint: str
    rows: str
    model: str


@dataclass(frozen=True)
class Digests:
    """Digests of what a study reads from outside its file: the base model, and the rows per (task, phase)."""

    model: str
    rows: Mapping[tuple[str, str], str] = field(default_factory=dict)


def digests_of(study: Study) -> Digests:
    """Read all rows once, and compute their digests.

    Raises:
        InputError: rows or a model folder that cannot be read.
    """
    model = _digest_of_base(study.model)
    rows = {}
    for task in study.tasks:
        parts = load_parts(study, task)
        for phase in PHASES:
            rows[task.name, phase] = parts.digest(phase)
    return Digests(model, rows)


def _digest_of_base(name: str | None) -> str:
    if name is not None:
        check_local(name)
    if name is not None and digest_of_model(name) == name:
        # a model of the hub that is not in its cache: with its config its commit comes, which names it from now on
        try:
            AutoConfig.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise InputError(f"no model {name!r}, as a folder or on the hub: {str(error).splitlines()[0]}") from error
    return digest_of_model(name)


def cell_of(study: Study, digests: Digests, arm: Arm, task: Task, phase: Phase, rate: float, seed: int) -> Cell:
    """A cell with its identity: settings, rows and model determine it; the place of the rows and other arms do not."""
    identity = fingerprint(
        arm=arm.name,
        method=arm.method,
        fields=fields_of(arm),
        c_lr_factor=arm.c_lr_factor,
        placement=[study.target_modules, study.exclude_modules, study.modules_to_save],
        training=dataclasses.asdict(study.training),
        task=kind_of(task).settings(task, phase),
        model=digests.model,
        rows=digests.rows[task.name, phase],
        phase=phase,
        learning_rate=rate,
        seed=seed,
        # left out where there are none, as before they could be chosen
        **({} if study.blocks is None else {"blocks": study.blocks}),
    )
    return Cell(arm.name, task.name, phase, rate, seed, identity, digests.rows[task.name, phase], digests.model)


def search_cells(
    study: Study, digests: Digests, arm: Arm, task: Task, rows: Mapping[str, CellResult] | None = None
) -> list[Cell]:
    """The cells that choose an arm's rate on a task; none where it has one rate: there is nothing to choose.

    Where a study widens, a rate beyond the edge is added as soon as all others are finished and the best one is at the
    edge. That depends only on finished rows: a study that was stopped adds the same rate.

    Args:
        study: what is compared.
        digests: of its rows and model.
        arm: whose rate is chosen.
        task: on which it is chosen.
        rows: finished ones by fingerprint; None: none, which gives the cells of the grid.
    """
    rates, finished = list(study.rates_of(arm)), rows or {}
    if len(rates) == 1:
        return []

    def cells_at(rate: float) -> list[Cell]:
        return [cell_of(study, digests, arm, task, "search", rate, seed) for seed in study.search_seeds]

    cells = [cell for rate in rates for cell in cells_at(rate)]
    for _ in range(study.widen):
        if any(cell.fingerprint not in finished for cell in cells):
            break
        searched = [finished[cell.fingerprint] for cell in cells]
        best = chosen_rate(searched, study.choose_by)
        if best is None and all(row.status == "diverged" for row in searched):
            best = min(rates)  # all were too high
        further = None if best is None else rate_beyond(rates, best)
        if further is None:
            break
        rates.append(further)
        cells += cells_at(further)
    return cells


def final_cells(study: Study, digests: Digests, arm: Arm, task: Task, rate: float) -> list[Cell]:
    """The cells that give an arm's result on a task."""
    return [cell_of(study, digests, arm, task, "final", rate, seed) for seed in study.seeds]


def open_cells(study: Study, digests: Digests, rows: Mapping[str, CellResult]) -> list[Cell]:
    """The cells that can run now and have no row yet, in the order in which they should run.

    Tasks go one after the other. On each the searches of all arms come first; then the first seed of every arm whose
    search is finished, then the second: a study that is cut off has seeds of an arm next to those of its reference.

    Args:
        study: what is compared.
        digests: of its rows and model.
        rows: finished ones by fingerprint: done, diverged or failed.
    """
    cells: list[Cell] = []
    for task in study.tasks:
        ready: list[Cell] = []
        for arm in study.arms:
            searched = search_cells(study, digests, arm, task, rows)
            missing = [cell for cell in searched if cell.fingerprint not in rows]
            cells += missing
            rate = None if missing else rate_of(study, arm, [rows[cell.fingerprint] for cell in searched])
            if rate is not None:
                final = final_cells(study, digests, arm, task, rate)
                ready += [cell for cell in final if cell.fingerprint not in rows]
        cells += sorted(ready, key=lambda cell: study.seeds.index(cell.seed))
    return cells


def rate_of(study: Study, arm: Arm, searched: Sequence[CellResult]) -> float | None:
    """The learning rate of an arm's result: what its search chooses, or its only one; None where none came through."""
    rates = study.rates_of(arm)
    return rates[0] if len(rates) == 1 else chosen_rate(searched, study.choose_by)


def chosen_rate(searched: Iterable[CellResult], by: Literal["metric", "loss"] = "metric") -> float | None:
    """The learning rate of the best mean validation metric; of equals the one of the lower loss, then the lower rate.

    A rate that failed or diverged with any seed is out. Rows of other phases are refused: no test row may choose.

    Args:
        searched: rows of the search of one arm on one task.
        by: "loss" compares only the loss.

    Returns:
        The rate; None where no rate came through.
    """
    by_rate: dict[float, list[CellResult]] = {}
    for row in searched:
        assert row.phase == "search", row
        by_rate.setdefault(row.learning_rate, []).append(row)
    whole = {rate: rows for rate, rows in by_rate.items() if all(row.status == "done" for row in rows)}
    if not whole:
        return None

    def order(rate: float) -> tuple[float, float, float]:
        rows = whole[rate]
        value = statistics.fmean(row.known_value for row in rows)
        losses = [row.loss for row in rows if row.loss is not None]
        loss = statistics.fmean(losses) if len(losses) == len(rows) else math.inf
        if by == "loss":
            return (loss, 0.0, rate)
        return (value if rows[0].metric in LOWER_IS_BETTER else -value, loss, rate)

    return min(whole, key=order)


def is_at_the_edge(rates: Collection[float], rate: float) -> bool:
    """Whether the best rate is the lowest or highest of at least three: a better one may be beyond it."""
    return len(rates) >= 3 and rate in (min(rates), max(rates))


def arm_named(study: Study, name: str) -> Arm:
    """The arm of this name."""
    return next(arm for arm in study.arms if arm.name == name)


def task_named(study: Study, name: str) -> Task:
    """The task of this name."""
    return next(task for task in study.tasks if task.name == name)


def cells_of_arm(study: Study, arm: Arm) -> int:
    """How many cells an arm has on a task at most: if its search comes through, and is widened as often as it may."""
    rates = len(study.rates_of(arm))
    return len(study.seeds) + ((rates + study.widen) * len(study.search_seeds) if rates > 1 else 0)


def cells_at_most(study: Study) -> int:
    """How many cells the study has at most."""
    return sum(cells_of_arm(study, arm) for arm in study.arms) * len(study.tasks)


def with_root(study: Study, data_root: str | None) -> Study:
    """The study with its data elsewhere.

    Raises:
        InputError: no such folder.
    """
    from pathlib import Path

    if data_root is None:
        return study
    if not Path(data_root).expanduser().is_dir():
        raise InputError(f"--data_root: no such folder: {data_root}")
    return dataclasses.replace(study, data_root=data_root)
