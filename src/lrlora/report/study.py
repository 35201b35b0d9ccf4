"""The results of a study, as far as its results.jsonl tells: every arm, paired with plain LoRA, and its price."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plotly import graph_objects

from lrlora.files import read_json_lines
from lrlora.report.figures import GREY, plain
from lrlora.statistics import Interval, PairedDifference, mean_interval, paired_difference

FILE = "results.jsonl"
REFERENCE = "lora"
"""The arm that the others are compared with."""

Row = dict[str, Any]


@dataclass(frozen=True)
class ArmResult:
    """One arm on one task, seeds together.

    Args:
        task: name of the task.
        metric: of the values.
        arm: name of the arm.
        learning_rate: of its final runs; None where they differ.
        value: mean over seeds, with interval.
        against: paired by seed with the arm "lora" on the same task; None for that arm itself or without it.
        parameters: trained ones, mean.
        wall_s: mean seconds.
        peak_bytes: mean; None where not measured.
        file_bytes: mean; None where not measured.
    """

    task: str
    metric: str
    arm: str
    learning_rate: float | None
    value: Interval
    against: PairedDifference | None
    parameters: float | None
    wall_s: float | None
    peak_bytes: float | None
    file_bytes: float | None


@dataclass(frozen=True)
class StudySection:
    """What a page shows of a study.

    Args:
        name: of the folder.
        results: one per task and arm.
        failed: rows without a finite value, in words.
        frontier: value over trained parameters, per task.
    """

    name: str
    results: list[ArmResult]
    failed: list[str]
    frontier: list[tuple[str, Any]]


def study_section(folder: str | Path) -> StudySection | None:
    """Read results.jsonl of a folder; None where there is no such file, or nothing final in it.

    A line has the keys arm, task, learning_rate, seed, metric, value, trainable_parameters, wall_s, peak_bytes and
    file_bytes. Where lines have a `phase`, those of "final" alone are results: what searches for a learning rate has
    chosen on its own numbers.

    Raises:
        InputError: a line that is not JSON, other than a last one cut short.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return None
    rows = [row for row in read_json_lines(path) if row.get("phase") in (None, "final")]
    good = [row for row in rows if _is_number(row.get("value"))]
    failed = [
        f"{row.get('arm')}, {row.get('task')}, seed {row.get('seed')}: {row.get('reason') or 'no value'}"
        for row in rows
        if not _is_number(row.get("value"))
    ]
    if not good:
        return None
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in good:
        cells.setdefault((str(row.get("task")), str(row.get("arm"))), []).append(row)
    results = [_result(task, arm, of_cell, cells.get((task, REFERENCE))) for (task, arm), of_cell in cells.items()]
    tasks = list(dict.fromkeys(result.task for result in results))
    frontier = [(task, _frontier([r for r in results if r.task == task])) for task in tasks]
    return StudySection(Path(folder).name, results, failed, [(t, f) for t, f in frontier if f is not None])


def _result(task: str, arm: str, rows: list[Row], reference: list[Row] | None) -> ArmResult:
    against = None
    if reference is not None and arm != REFERENCE:
        theirs = {row.get("seed"): row["value"] for row in reference}
        pairs = [(row["value"], theirs[row.get("seed")]) for row in rows if row.get("seed") in theirs]
        against = paired_difference([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None
    rates = {row.get("learning_rate") for row in rows}
    return ArmResult(
        task=task,
        metric=str(rows[0].get("metric")),
        arm=arm,
        learning_rate=rates.pop() if len(rates) == 1 else None,
        value=mean_interval([row["value"] for row in rows]),
        against=against,
        parameters=_mean(rows, "trainable_parameters"),
        wall_s=_mean(rows, "wall_s"),
        peak_bytes=_mean(rows, "peak_bytes"),
        file_bytes=_mean(rows, "file_bytes"),
    )


def _frontier(results: list[ArmResult]) -> Any:
    """Value over parameters; a line joins the arms that no other beats with fewer parameters."""
    known = sorted((r for r in results if r.parameters), key=lambda r: (r.parameters or 0, -r.value.mean))
    if len(known) < 2:
        return None
    best: list[ArmResult] = []
    for result in known:
        if not best or result.value.mean > best[-1].value.mean:
            best.append(result)
    figure = graph_objects.Figure()
    figure.add_scatter(
        x=[r.parameters for r in best],
        y=[r.value.mean for r in best],
        mode="lines",
        line={"color": GREY, "dash": "dot", "shape": "hv"},
        hoverinfo="skip",
    )
    reach = [((r.value.high or r.value.mean) - r.value.mean) for r in known]
    figure.add_scatter(
        x=[r.parameters for r in known],
        y=[r.value.mean for r in known],
        error_y={"type": "data", "array": reach, "thickness": 1, "color": GREY},
        mode="markers+text",
        text=[plain(r.arm) for r in known],
        textposition="top center",
        marker={"size": 10, "color": "#3f7fd0"},
        hovertemplate="%{text}: %{y:.4f}, %{x:,.0f} parameters<extra></extra>",
    )
    figure.update_xaxes(type="log", title_text="trained parameters", automargin=True)
    figure.update_yaxes(title_text=plain(known[0].metric), automargin=True)
    figure.update_layout(height=360, margin={"l": 10, "r": 30, "t": 30, "b": 10}, showlegend=False)
    return figure


def _mean(rows: list[Row], key: str) -> float | None:
    values = [row[key] for row in rows if _is_number(row.get(key))]
    return sum(values) / len(values) if values else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
