"""The figures of a report, as plotly figures without colours of their own for text, grid and ground: the page has two
themes, and gives them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from plotly import graph_objects
from plotly.subplots import make_subplots

from lrlora.method import rank
from lrlora.method.nonlinearity import phi as phi_of
from lrlora.report.numbers import Findings, Run
from lrlora.statistics import block_pairs
from lrlora.tuner.names import block_of, kind_of, type_of
from lrlora.tuner.ranks import LayerRank, Update

# readable on white and on near-black, and told apart by the colour-blind
COLOURS = {"attention": "#3f7fd0", "mlp": "#d9782d", "other": "#7d8a99"}
NAMES = {"attention": "attention", "mlp": "MLP", "other": "other"}
GREY = "#8b929b"
DARK_VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c"]
"""The half of Viridis on which white numbers can be read."""
CURVES_OF_BLOCKS = 12
"""Curves of phi are drawn for so many blocks at most, evenly spaced."""
SPECTRUM = 48
"""So many singular values are drawn."""

Figure = graph_objects.Figure


def heatmap(found: Findings) -> Figure:
    """Module x block: SR(dW), and its two nulls beside it, on one colour scale; seeds and experts averaged."""
    panels = [("stable_rank", "learned: SR(dW)"), ("stable_rank_ba", "null: SR(BA), plain LoRA")]
    if all(line["stable_rank_initial"] is not None for line in found.table):
        panels.append(("stable_rank_initial", "null: phi untrained"))
    modules = _unique(line["module"] for line in found.table)
    blocks = sorted({line["block"] for line in found.table}, key=_block_order)
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
            x=[_block_name(b) for b in blocks],
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
    return _sized(figure, 110 + 34 * len(modules))


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
            x, y = _track(recorded[0], lambda row, name=name: row.layer == name, "stable_rank")
            _line(figure, column, x, y, plain(name), COLOURS[kind], width=1, opacity=0.28)
        for number, run in enumerate(recorded):
            for measure, dash, colour, word in (
                ("stable_rank_ba", "dot", GREY, "mean SR(BA), the null"),
                ("stable_rank", "solid", COLOURS[kind], f"mean SR(dW), {NAMES[kind]}"),
            ):
                x, y = _track(run, lambda row, kind=kind: row.kind == kind, measure)
                is_named = number == 0 and (column == 1 or measure == "stable_rank")
                label = f"{word}, {run.folder.name}"
                _line(figure, column, x, y, label, colour, 2.5, 1, dash, word if is_named else None)
            x, y = _track(run, lambda row, kind=kind: row.kind == kind, "rms_over_tau")
            _line(figure, len(kinds) + 1, x, y, f"{NAMES[kind]}, {run.folder.name}", COLOURS[kind], 2.5)
    figure.update_xaxes(title_text="step", title_standoff=4, rangemode="tozero")
    figure.update_yaxes(rangemode="tozero", col=len(kinds) + 1)
    return _sized(figure, 340, legend=True)


def curves(runs: Sequence[Run]) -> Figure:
    """The learned phi of every layer, one curve per seed, its start dotted, over the density of the entries of BA."""
    # the file of an adapter has its layers by name, the rows have them as the model has
    order = {row.layer: number for number, row in enumerate(runs[0].rows)}
    updates = sorted(runs[0].updates, key=lambda update: order.get(update.name, len(order)))
    updates = [update for update in updates if update.expert in (None, 0)]
    if any(block_of(update.layer) is not None for update in updates):
        updates = [update for update in updates if block_of(update.layer) is not None]
    modules = _unique(type_of(update.layer) for update in updates)
    blocks = _spaced(sorted({block_of(update.layer) for update in updates}, key=_block_order))
    figure = make_subplots(
        rows=len(modules),
        cols=len(blocks),
        shared_xaxes="all",  # pyright: ignore[reportArgumentType]
        shared_yaxes="all",  # pyright: ignore[reportArgumentType]
        column_titles=[f"block {_block_name(b)}" if b is not None else "no block" for b in blocks],
        horizontal_spacing=0.008,
        vertical_spacing=min(0.03, 0.2 / len(modules)),
    )
    reach = min(_half(updates) + 1.0, max(2.0, 1.15 * max(_far(update) for update in updates)))
    u = torch.linspace(-reach, reach, 61)
    for update in updates:
        if block_of(update.layer) not in blocks:
            continue
        place = (modules.index(type_of(update.layer)) + 1, blocks.index(block_of(update.layer)) + 1)
        _density(figure, place, update, reach)
        _curve(figure, place, u, update, update.c_initial, GREY, "start of phi", "dot")
        for run in runs:
            same = next((other for other in run.updates if other.name == update.name), None)
            if same is not None:
                colour = COLOURS[kind_of(update.layer)]
                _curve(figure, place, u, same, same.c, colour, f"phi, {run.folder.name}", "solid")
    figure.update_xaxes(range=[-reach, reach], tickvals=[-2, 0, 2], tickfont={"size": 10}, zeroline=True)
    figure.update_yaxes(range=[-reach, reach], tickvals=[-2, 0, 2], tickfont={"size": 10}, zeroline=True)
    for number, module in enumerate(modules, start=1):
        figure.update_yaxes(title_text=_broken(plain(module)), title_font={"size": 11}, row=number, col=1)
    figure.update_annotations(font={"size": 11})
    return _sized(figure, 60 + 96 * len(modules))


def spectra(run: Run) -> Figure:
    """Singular values of dW as shares of the largest, and of BA dotted, layer by layer of one run."""
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
            shares = [v / values[0].item() if values[0] > 0 else 0.0 for v in values.tolist()]
            x = [n + 1 for n, share in enumerate(shares) if share > 1e-5]
            name = f"{word}, {plain(update.name)}"
            _line(figure, column, x, [s for s in shares if s > 1e-5], name, colour, 1.2, 0.6, dash)
    figure.update_yaxes(type="log", dtick=1, exponentformat="power", range=[-5, 0.1])
    figure.update_yaxes(title_text="share of the largest", col=1)
    figure.update_xaxes(title_text="singular value", title_standoff=4)
    return _sized(figure, 330)


def pairs(found: Findings) -> Figure | None:
    """Attention and MLP of every block as two dots with a line between them, seeds as faint dots."""
    means = block_pairs(found.rows_of_seeds)
    if not means:
        return None
    figure = graph_objects.Figure()
    for block, (attention, mlp) in means.items():
        line = {"color": GREY, "width": 1.5}
        y = [_block_name(block)] * 2
        figure.add_scatter(x=[attention, mlp], y=y, mode="lines", line=line, showlegend=False, hoverinfo="skip")
    for number, kind in enumerate(("attention", "mlp")):
        if found.seeds > 1:
            each = [(_block_name(b), pair[number]) for r in found.rows_of_seeds for b, pair in block_pairs([r]).items()]
            marker = {"color": COLOURS[kind], "size": 6, "opacity": 0.4}
            _dots(figure, [v for _, v in each], [b for b, _ in each], f"{NAMES[kind]}, one seed", marker, False)
        marker = {"color": COLOURS[kind], "size": 12}
        _dots(figure, [p[number] for p in means.values()], list(map(_block_name, means)), NAMES[kind], marker, True)
    figure.update_yaxes(title_text="block", type="category", autorange="reversed")
    figure.update_xaxes(title_text="mean stable rank of the block's layers")
    return _sized(figure, 130 + 30 * len(means), legend=True)


def plain(name: str) -> str:
    """A name as plotly shows it: it reads some HTML in texts."""
    return name.replace("&", "&amp;").replace("<", "&lt;")


def _dots(figure: Figure, x: list[float], y: list[str], name: str, marker: dict[str, Any], is_named: bool) -> None:
    template = f"block %{{y}}, {name}: %{{x:.3f}}<extra></extra>"
    figure.add_scatter(x=x, y=y, mode="markers", name=name, marker=marker, showlegend=is_named, hovertemplate=template)


def _curve(figure: Figure, place: tuple[int, int], u: Any, update: Update, c: Any, colour: str, name: str, dash: str):
    # in units of tau; tau = inf is the line
    tau = 1.0 if torch.isfinite(update.tau) else math.inf
    y = phi_of(u, None if update.phi == "sine" else c, 1.0 if update.phi == "sine" else tau, update.phi)
    template = f"{plain(update.name)}<br>{plain(name)}(%{{x:.2f}} tau) = %{{y:.2f}} tau<extra></extra>"
    line = {"color": colour, "width": 1.4, "dash": dash}
    x, y = [round(v, 3) for v in u.tolist()], [round(v, 4) for v in y.tolist()]
    figure.add_scatter(
        x=x, y=y, mode="lines", line=line, hovertemplate=template, showlegend=False, row=place[0], col=place[1]
    )


def _density(figure: Figure, place: tuple[int, int], update: Update, reach: float) -> None:
    entries = (update.B @ update.A).flatten()[:: max(1, update.B.shape[0] * update.A.shape[1] // 20000)] / update.tau
    counts = torch.histc(entries, 41, -reach, reach)
    x = [round(-reach + (n + 0.5) * 2 * reach / 41, 3) for n in range(41)]
    # the tallest bin reaches half the height
    y = [round(v, 3) for v in (reach * counts / counts.max().clamp(min=1) - reach).tolist()]
    figure.add_scatter(x=x, y=[-reach] * 41, mode="lines", line={"width": 0}, **_mute(place))
    figure.add_scatter(
        x=x, y=y, mode="lines", line={"width": 0}, fill="tonexty", fillcolor="rgba(139,146,155,0.35)", **_mute(place)
    )


def _mute(place: tuple[int, int]) -> dict[str, Any]:
    return {"hoverinfo": "skip", "showlegend": False, "row": place[0], "col": place[1]}


def _far(update: Update) -> float:
    """99 % of the entries of BA are within this many tau, if they are normal."""
    return 2.6 * (rank.product_rms(update.A, update.B) / update.tau).item()


def _half(updates: Sequence[Update]) -> int:
    return max(5 if update.c is None else len(update.c) // 2 for update in updates)


def _line(
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


def _track(run: Run, chosen: Any, measure: str) -> tuple[list[float], list[float]]:
    found = []
    for record in run.records:
        rows: list[LayerRank] = [row for row in record["layers"] if chosen(row)]
        if rows:
            found.append((record["step"], sum(getattr(row, measure) for row in rows) / len(rows)))
    return [step for step, _ in found], [value for _, value in found]


def _sized(figure: Figure, height: int, legend: bool = False) -> Figure:
    figure.update_layout(
        height=height,
        margin={"l": 10, "r": 10, "t": 40, "b": 10 if not legend else 60},
        showlegend=legend,
        legend={"orientation": "h", "y": -0.28, "yref": "paper", "x": 0},
    )
    figure.update_yaxes(automargin=True)
    figure.update_xaxes(automargin=True)
    return figure


def _spaced(blocks: list[Any]) -> list[Any]:
    if len(blocks) <= CURVES_OF_BLOCKS:
        return blocks
    last = len(blocks) - 1
    return [blocks[round(n * last / (CURVES_OF_BLOCKS - 1))] for n in range(CURVES_OF_BLOCKS)]


def _broken(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:-1]) + "<br>." + parts[-1] if len(parts) > 1 else name


def _unique(names: Any) -> list[str]:
    return list(dict.fromkeys(names))


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _block_order(block: int | None) -> tuple[bool, int]:
    return block is None, block or 0


def _block_name(block: int | None) -> str:
    return "-" if block is None else str(block)
