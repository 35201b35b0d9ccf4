"""Figures of the gates: which layers asked for a rank that r does not bound, and when."""

from __future__ import annotations

from collections.abc import Sequence

from plotly.subplots import make_subplots

from lrlora.report.figures import COLOURS, NAMES, Figure, block_name, block_order, line, plain, sized, track, unique
from lrlora.report.findings import Findings
from lrlora.saved.results import Run


def gate_heatmap(found: Findings) -> Figure | None:
    """Module x block: the gate gamma, from 0 (LoRA) to 1 (nothing is bound by r); None where no layer has one."""
    lines = [row for row in found.table if row["gate"] is not None]
    if not lines:
        return None
    modules = unique(row["module"] for row in lines)
    blocks = sorted({row["block"] for row in lines}, key=block_order)
    cells: dict[tuple[str, int | None], list[float]] = {}
    for row in lines:
        cells.setdefault((row["module"], row["block"]), []).append(row["gate"].mean)
    means = {place: sum(values) / len(values) for place, values in cells.items()}
    figure = Figure()
    figure.add_heatmap(
        z=[[means.get((module, block)) for block in blocks] for module in modules],
        x=[block_name(block) for block in blocks],
        y=[plain(module) for module in modules],
        zmin=0,
        zmax=1,
        colorscale="Viridis",
        colorbar={"title": {"text": "gate"}, "thickness": 12, "len": 1.0},
        xgap=1,
        ygap=1,
        hovertemplate="block %{x}, %{y}<br>gate %{z:.3f}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", ticks="", showgrid=False)
    figure.update_xaxes(title_text="block", type="category", ticks="", showgrid=False, title_standoff=4)
    return sized(figure, 90 + 34 * len(modules))


def gate_trajectories(runs: Sequence[Run]) -> Figure | None:
    """The gate over the training steps: layers of the first run thin, the mean of every seed thick.

    None where no run has two records with gates.
    """
    recorded = [r for r in runs if len(r.records) > 1 and any(row.gate is not None for row in r.records[-1]["layers"])]
    if not recorded:
        return None
    kinds = [k for k in NAMES if any(row.kind == k and row.gate is not None for row in recorded[0].rows)]
    figure = make_subplots(
        cols=len(kinds), shared_yaxes=True, subplot_titles=[f"gate, {NAMES[k]}" for k in kinds], horizontal_spacing=0.05
    )
    for column, kind in enumerate(kinds, start=1):
        for name in [row.layer for row in recorded[0].records[-1]["layers"] if row.kind == kind]:
            x, y = track(recorded[0], lambda row, name=name: row.layer == name, "gate")
            line(figure, column, x, y, plain(name), COLOURS[kind], width=1, opacity=0.28)
        for run in recorded:
            x, y = track(run, lambda row, kind=kind: row.kind == kind, "gate")
            line(figure, column, x, y, f"mean, {NAMES[kind]}, {run.folder.name}", COLOURS[kind], 2.5)
    figure.update_xaxes(title_text="step", title_standoff=4, rangemode="tozero")
    figure.update_yaxes(range=[0, 1])
    return sized(figure, 300)
