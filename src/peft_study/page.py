"""Studies in the page of `lrlora report`, as their results.jsonl tell: arms against the reference, ranks, prices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plotly import graph_objects

from lrlora.files import check_file, read_json
from lrlora.report import page
from lrlora.report.figures import COLOURS, GREY, NAMES, plain
from lrlora.saved.local import holds_adapter
from lrlora.statistics import SMALLEST_EFFECT, Interval
from peft_study.answers import answers
from peft_study.capacity_figures import capacity_figures
from peft_study.scales import scale_lines
from peft_study.store import read_rows
from peft_study.summary import ArmResult, reference_of, summary

FILE = "results.jsonl"
DESCRIBED = "summary.json"
TEMPLATES = Path(__file__).parent / "templates"
SIDES = ("top center", "bottom center", "middle right", "middle left")


@dataclass(frozen=True)
class StudySection:
    """What a page shows of a study.

    Args:
        name: of the study, or of its folder.
        note: the study's own description.
        reference: the arm that the others are compared with.
        results: one per task and arm.
        answers: questions with their answers.
        scales: arms of different scales at one rank, in words.
        failed: cells without a result, in words.
        frontier: value over trained parameters, per task.
        kinds: stable rank of attention and of MLP, arm by arm, per task; without tasks whose arms learn no rank.
        capacity: for tasks of facts, what arms hold: pairs of what a figure shows and the figure.
    """

    name: str
    note: str
    reference: str
    results: list[ArmResult]
    answers: list[tuple[str, str]]
    scales: list[str]
    failed: list[str]
    frontier: list[tuple[str, Any]]
    kinds: list[tuple[str, Any]]
    capacity: list[tuple[str, Any]]


def write_report(folders: Sequence[str | Path], out: str | Path, model: str | None = None) -> list[str]:
    """Write the report of studies, and of runs, as one HTML file.

    Args:
        folders: folders of studies, and run folders or adapters that differ by their seed.
        out: the HTML file.
        model: base model to measure adapters on; None means as `lrlora.saved.results.read_run`.

    Returns:
        Warnings: where a learned rank is none.

    Raises:
        InputError: a folder that is neither, runs that cannot be read together, or an `out` that is read.

    Example:
        write_report(["runs/mine"], "report.html")
    """
    places = [Path(folder).expanduser() for folder in folders]
    studies = [section for section in map(study_section, places) if section is not None]
    check_file(Path(out), places)
    sections = [section_of(study, number) for number, study in enumerate(studies)]
    runs = [place for place in places if not (place / FILE).exists() or holds_adapter(place)]
    return page.write_report(runs, out, model, sections)


def section_of(study: StudySection, number: int) -> page.Section:
    """A study as the part `number` of a page."""
    figures_of = {"frontier": study.frontier, "kinds": study.kinds, "capacity": study.capacity}

    def name_of(kind: str, place: int) -> str:
        return f"{kind}-{number}-{place}"

    html = page.environment(TEMPLATES).get_template("study.html").render(study=study, name_of=name_of)
    figures = {
        name_of(kind, place): figure for kind, pairs in figures_of.items() for place, (_, figure) in enumerate(pairs)
    }
    return page.Section(html, figures)


@dataclass(frozen=True)
class _Point:
    arm: str
    parameters: int
    value: Interval


def study_section(folder: str | Path) -> StudySection | None:
    """Read results.jsonl of a folder; None where there is no such file, or no result in it.

    With the summary.json that `lrlora study` writes next to it, only the rows that the study still has are read, and
    the arms are compared with the study's reference. Without it, all rows are read, and the reference is the first arm
    of method "lora".

    Raises:
        InputError: a line that is no row of a study, other than a last one cut short.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return None
    rows = read_rows(path)
    described = path.with_name(DESCRIBED)
    about: dict[str, Any] = read_json(described) if described.exists() else {}
    if "cells" in about:
        cells = set(about["cells"])
        rows = [row for row in rows if row.fingerprint in cells]
    reference = about.get("reference") or reference_of(rows) or ""
    results = summary(rows, reference, about.get("smallest_effect", SMALLEST_EFFECT))
    if not any(result.test for result in results):
        return None
    by_task = {task: [r for r in results if r.task == task] for task in dict.fromkeys(r.task for r in results)}
    frontier = [(task, _frontier(mine, str(mine[0].metric))) for task, mine in by_task.items()]
    kinds = [(task, _kinds(mine)) for task, mine in by_task.items()]
    return StudySection(
        name=about.get("study") or Path(folder).name,
        note=about.get("note", ""),
        reference=reference,
        results=results,
        answers=answers(results, reference),
        scales=scale_lines((result.arm, result.scale) for result in results),
        failed=[
            f"{row.arm}, {row.task}, {row.phase}, rate {row.learning_rate:g}, seed {row.seed}: "
            f"{row.reason or 'no value'}"
            for row in rows
            if row.status == "failed"
        ],
        frontier=[(task, figure) for task, figure in frontier if figure is not None],
        kinds=[(task, figure) for task, figure in kinds if figure is not None],
        capacity=capacity_figures(results),
    )


def _frontier(results: list[ArmResult], metric: str) -> Any:
    """Value over parameters; a line joins the arms that no other beats with fewer parameters."""
    known = sorted(
        (_Point(r.arm, r.trainable_parameters, r.test) for r in results if r.test and r.trainable_parameters),
        key=lambda point: (point.parameters, -point.value.mean),
    )
    if len(known) < 2:
        return None
    best: list[_Point] = []
    for point in known:
        if not best or point.value.mean > best[-1].value.mean:
            best.append(point)
    figure = graph_objects.Figure()
    figure.add_scatter(
        x=[r.parameters for r in best],
        y=[r.value.mean for r in best],
        mode="lines",
        line={"color": GREY, "dash": "dot", "shape": "hv"},
        hoverinfo="skip",
    )
    # an interval that ends at the bounds of its metric is not symmetric
    above = [r.value.mean if r.value.high is None else r.value.high for r in known]
    below = [r.value.mean if r.value.low is None else r.value.low for r in known]
    reach = {
        "array": [high - r.value.mean for r, high in zip(known, above, strict=True)],
        "arrayminus": [r.value.mean - low for r, low in zip(known, below, strict=True)],
    }
    figure.add_scatter(
        x=[r.parameters for r in known],
        y=[r.value.mean for r in known],
        error_y={"type": "data", **reach, "symmetric": False, "thickness": 1, "color": GREY},
        mode="markers+text",
        text=[plain(r.arm) for r in known],
        # neighbours say their names on different sides
        textposition=[SIDES[number % len(SIDES)] for number in range(len(known))],
        marker={"size": 10, "color": "#3f7fd0"},
        hovertemplate="%{text}: %{y:.4f}, %{x:,.0f} parameters<extra></extra>",
    )
    figure.update_xaxes(type="log", title_text="trained parameters", automargin=True)
    figure.update_yaxes(title_text=plain(metric), automargin=True)
    figure.update_layout(height=360, margin={"l": 10, "r": 30, "t": 30, "b": 10}, showlegend=False)
    return figure


def _kinds(results: list[ArmResult]) -> Any:
    """A line per arm between the mean stable rank of attention and of MLP; hollow, the null of all layers."""
    known = [(plain(r.arm), r.ranks) for r in results if r.ranks and r.ranks.attention is not None]
    if not known:
        return None
    figure = graph_objects.Figure()
    for arm, ranks in known:
        line = {"color": GREY, "width": 1.5}
        ends = [ranks.attention, ranks.mlp]
        figure.add_scatter(x=ends, y=[arm] * 2, mode="lines", line=line, showlegend=False, hoverinfo="skip")
    arms = [arm for arm, _ in known]
    dots = {
        NAMES["attention"]: ([ranks.attention for _, ranks in known], {"color": COLOURS["attention"], "size": 11}),
        NAMES["mlp"]: ([ranks.mlp for _, ranks in known], {"color": COLOURS["mlp"], "size": 11}),
        "all layers, SR(BA)": (
            [ranks.stable_rank_ba.mean for _, ranks in known],
            {"color": COLOURS["other"], "size": 10, "symbol": "diamond-open", "line": {"width": 2}},
        ),
    }
    for name, (x, marker) in dots.items():
        figure.add_scatter(
            x=x,
            y=arms,
            mode="markers",
            marker=marker,
            name=name,
            hovertemplate="%{y}: %{x:.2f}<extra>" + name + "</extra>",
        )
    figure.update_yaxes(type="category", autorange="reversed", automargin=True)
    figure.update_xaxes(title_text="mean stable rank of the layers", automargin=True)
    figure.update_layout(
        height=120 + 28 * len(known),
        margin={"l": 10, "r": 30, "t": 30, "b": 10},
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
    )
    return figure
