"""The figures of a report, as plotly figures without colours of their own for text, grid and ground: the page has two
themes, and gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plotly import graph_objects
from plotly.subplots import make_subplots

from lrlora.method import rank
from lrlora.ranks.layers import block_pairs
from lrlora.report.findings import Findings
from lrlora.saved.results import Run
from lrlora.tuner.names import kind_of

# readable on white and on near-black, and told apart by the colour-blind
COLOURS = {"attention": "#3f7fd0", "mlp": "#d9782d", "other": "#7d8a99"}
NAMES = {"attention": "attention", "mlp": "MLP", "other": "other"}
GREY = "#8b929b"
DARK_VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c"]
"""The half of Viridis on which white numbers can be read."""
SPECTRUM = 48
"""So many singular values are drawn."""

Figure = graph_objects.Figure


def heatmap(found: Findings) -> Figure:
    """Module x block: SR(dW) next to its two baselines (nulls), on one colour scale; seeds and experts averaged."""
    panels = [("stable_rank", "learned: SR(dW)"), ("stable_rank_ba", "null: SR(BA), plain LoRA")]
    if all(line["stable_rank_initial"] is not None for line in found.table):
        panels.append(("stable_rank_initial", "null: phi untrained"))
    modules = unique(line["module"] for line in found.table)
    blocks = sorted({line["block"] for line in found.table}, key=block_order)
    figure = make_subplots(
        cols=len(panels), shared_yaxes=True, horizontal_spacing=0.02, subplot_titles=[t for _, t in panels]
    )
    has_text = len(blocks) * len(panels) <= 28
    top = 1.01
    for column, (measure, title) in enumerate(panels, start=1):
        cells: dict[tuple[str, Any], list[float]] = {}
        for line in found.table:
            cells.setdefault((line["module"], line["block"]), []).append(line[measure].mean)
        z = [[_mean(cells.get((m, b), [])) for b in blocks] for m in modules]
        top = max([top, *(v for line in z for v in line if v is not None)])
        figure.add_heatmap(
            z=z,
            x=[block_name(b) for b in blocks],
            y=[plain(m) for m in modules],
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            texttemplate="%{z:.2f}" if has_text else None,
            textfont={"size": 11, "color": "#ffffff"},
            hovertemplate="block %{x}, %{y}<br>" + title + " %{z:.3f}<extra></extra>",
            row=1,
            col=column,
        )
    figure.update_yaxes(autorange="reversed", ticks="", showgrid=False)
    figure.update_xaxes(title_text="block", type="category", ticks="", showgrid=False, title_standoff=4)
    bar = {"title": {"text": "stable rank"}, "thickness": 12, "len": 1.0}
    scale = DARK_VIRIDIS if has_text else "Viridis"
    figure.update_layout(coloraxis={"colorscale": scale, "cmin": 1, "cmax": top, "colorbar": bar})
    return sized(figure, 110 + 34 * len(modules))


def trajectories(runs: Sequence[Run]) -> Figure | None:
    """SR over the training steps: every layer of the first run thin, the mean of every seed thick, its null dotted.

    None where no run has two records: there is no line yet.
    """
    recorded = [run for run in runs if len(run.records) > 1]
    if not recorded:
        return None
    kinds = [k for k in ("attention", "mlp") if any(row.kind == k for row in recorded[0].rows)] or ["other"]
    titles = [f"stable rank, {NAMES[kind]}" for kind in kinds]
    figure = make_subplots(cols=len(kinds) + 1, subplot_titles=[*titles, "RMS(BA) / tau"], horizontal_spacing=0.07)
    for column, kind in enumerate(kinds, start=1):
        for name in [row.layer for row in recorded[0].records[-1]["layers"] if row.kind == kind]:
            x, y = track(recorded[0], lambda row, name=name: row.layer == name, "stable_rank")
            line(figure, column, x, y, plain(name), COLOURS[kind], width=1, opacity=0.28)
        for number, run in enumerate(recorded):
            for measure, dash, colour, word in (
                ("stable_rank_ba", "dot", GREY, "mean SR(BA), the null"),
                ("stable_rank", "solid", COLOURS[kind], f"mean SR(dW), {NAMES[kind]}"),
            ):
                x, y = track(run, lambda row, kind=kind: row.kind == kind, measure)
                is_named = number == 0 and (column == 1 or measure == "stable_rank")
                label = f"{word}, {run.folder.name}"
                line(figure, column, x, y, label, colour, 2.5, 1, dash, word if is_named else None)
            x, y = track(run, lambda row, kind=kind: row.kind == kind, "rms_over_tau")
            line(figure, len(kinds) + 1, x, y, f"{NAMES[kind]}, {run.folder.name}", COLOURS[kind], 2.5)
    figure.update_xaxes(title_text="step", title_standoff=4, rangemode="tozero")
    figure.update_yaxes(rangemode="tozero", col=len(kinds) + 1)
    return sized(figure, 340, legend=True)


def spectra(run: Run) -> Figure:
    """Singular values of dW as fractions of the largest, and of BA dotted, layer by layer of one run."""
    kinds = [k for k in ("attention", "mlp", "other") if any(kind_of(u.layer) == k for u in run.updates)]
    figure = make_subplots(cols=len(kinds), shared_yaxes=True, subplot_titles=[NAMES[k] for k in kinds])
    for update in run.updates:
        column = kinds.index(kind_of(update.layer)) + 1
        factors = rank.product_singular_values(update.A, update.B)
        sigma = rank.singular_values(update.matrix(update.c))[:SPECTRUM]
        for values, dash, colour, word in (
            (factors, "dot", GREY, "BA"),
            (sigma, "solid", COLOURS[kind_of(update.layer)], "dW"),
        ):
            fractions = [v / values[0].item() if values[0] > 0 else 0.0 for v in values.tolist()]
            x = [n + 1 for n, fraction in enumerate(fractions) if fraction > 1e-5]
            name = f"{word}, {plain(update.name)}"
            line(figure, column, x, [f for f in fractions if f > 1e-5], name, colour, 1.2, 0.6, dash)
    figure.update_yaxes(type="log", dtick=1, exponentformat="power", range=[-5, 0.1])
    figure.update_yaxes(title_text="fraction of the largest", col=1)
    figure.update_xaxes(title_text="singular value", title_standoff=4)
    return sized(figure, 330)


def pairs(found: Findings) -> Figure | None:
    """Attention and MLP of every block as two dots with a line between them, seeds as faint dots."""
    means = block_pairs(found.rows_of_seeds)
    if not means:
        return None
    figure = graph_objects.Figure()
    for block, (attention, mlp) in means.items():
        line = {"color": GREY, "width": 1.5}
        y = [block_name(block)] * 2
        figure.add_scatter(x=[attention, mlp], y=y, mode="lines", line=line, showlegend=False, hoverinfo="skip")
    for number, kind in enumerate(("attention", "mlp")):
        if found.seeds > 1:
            each = [(block_name(b), pair[number]) for r in found.rows_of_seeds for b, pair in block_pairs([r]).items()]
            marker = {"color": COLOURS[kind], "size": 6, "opacity": 0.4}
            _dots(figure, [v for _, v in each], [b for b, _ in each], f"{NAMES[kind]}, one seed", marker, False)
        marker = {"color": COLOURS[kind], "size": 12}
        _dots(figure, [p[number] for p in means.values()], list(map(block_name, means)), NAMES[kind], marker, True)
    figure.update_yaxes(title_text="block", type="category", autorange="reversed")
    figure.update_xaxes(title_text="mean stable rank of the block's layers")
    return sized(figure, 130 + 30 * len(means), legend=True)


def plain(name: str) -> str:
    """A name as plotly shows it: it reads some HTML in texts."""
    return name.replace("&", "&amp;").replace("<", "&lt;")


def _dots(figure: Figure, x: list[float], y: list[str], name: str, marker: dict[str, Any], is_named: bool) -> None:
    template = f"block %{{y}}, {name}: %{{x:.3f}}<extra></extra>"
    figure.add_scatter(x=x, y=y, mode="markers", name=name, marker=marker, showlegend=is_named, hovertemplate=template)


def line(
    figure: Figure,
    column: int,
    x: Sequence[float],
    y: Sequence[float],
    name: str,
    colour: str,
    width: float,
    opacity: float = 1,
    dash: str = "solid",
    legend: str | None = None,
) -> None:
    """Add a line to one panel of a row; named in the legend where `legend` is given."""
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines" if len(x) > 1 else "markers",
        line={"color": colour, "width": width, "dash": dash},
        marker={"color": colour, "size": 4 + width},
        opacity=opacity,
        name=legend or name,
        showlegend=legend is not None,
        hovertemplate=name + "<br>%{x}: %{y:.4g}<extra></extra>",
        row=1,
        col=column,
    )


def track(run: Run, chosen: Any, measure: str) -> tuple[list[float], list[float]]:
    """Steps, and the mean of a measure over the chosen layers that have it."""
    found = []
    for record in run.records:
        values = [getattr(row, measure) for row in record["layers"] if chosen(row)]
        values = [value for value in values if value is not None]
        if values:
            found.append((record["step"], sum(values) / len(values)))
    return [step for step, _ in found], [value for _, value in found]


def sized(figure: Figure, height: int, legend: bool = False) -> Figure:
    """The figure with its height, margins, and a legend below it or none."""
    figure.update_layout(
        height=height,
        margin={"l": 10, "r": 10, "t": 40, "b": 10 if not legend else 60},
        showlegend=legend,
        legend={"orientation": "h", "y": -0.28, "yref": "paper", "x": 0},
    )
    figure.update_yaxes(automargin=True)
    figure.update_xaxes(automargin=True)
    return figure


def unique(names: Any) -> list[str]:
    """Every name once, in the order of its first place."""
    return list(dict.fromkeys(names))


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def block_order(block: int | None) -> tuple[bool, int]:
    """Key to sort blocks by: what is in no block comes last."""
    return block is None, block or 0


def block_name(block: int | None) -> str:
    """A block as an axis shows it."""
    return "-" if block is None else str(block)
