"""What phi became: its learned curve in every layer, over the entries of B A that shaped it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from plotly.subplots import make_subplots

from lrlora.method import rank
from lrlora.method.nonlinearity import phi as phi_of
from lrlora.ranks.measure import Update
from lrlora.report.figures import COLOURS, GREY, Figure, block_name, block_order, plain, sized, unique
from lrlora.saved.results import Run
from lrlora.tuner.names import block_of, kind_of, type_of

CURVES_OF_BLOCKS = 12
"""Curves of phi are drawn for so many blocks at most, evenly spaced."""


def curves(runs: Sequence[Run]) -> Figure:
    """The learned phi of every layer, one curve per seed, its start dotted, over the density of the entries of BA."""
    # the file of an adapter has its layers by name, the rows have them as the model has
    order = {row.layer: number for number, row in enumerate(runs[0].rows)}
    updates = sorted(runs[0].updates, key=lambda update: order.get(update.name, len(order)))
    updates = [update for update in updates if update.expert in (None, 0)]
    if any(block_of(update.layer) is not None for update in updates):
        updates = [update for update in updates if block_of(update.layer) is not None]
    modules = unique(type_of(update.layer) for update in updates)
    blocks = _spaced(sorted({block_of(update.layer) for update in updates}, key=block_order))
    figure = make_subplots(
        rows=len(modules),
        cols=len(blocks),
        shared_xaxes="all",  # pyright: ignore[reportArgumentType]
        shared_yaxes="all",  # pyright: ignore[reportArgumentType]
        column_titles=[f"block {block_name(b)}" if b is not None else "no block" for b in blocks],
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
    return sized(figure, 60 + 96 * len(modules))


def _curve(figure: Figure, place: tuple[int, int], u: Any, update: Update, c: Any, colour: str, name: str, dash: str):
    # in units of tau; tau = inf is the line
    tau = 1.0 if torch.isfinite(update.tau) else math.inf
    numbers = (None, 1.0) if update.phi == "sine" else (c, tau)
    sides = [(None, "", dash)]
    if update.carrier is not None:
        offset = torch.full_like(u, update.carrier.offset)
        sides = [(offset, ", sign +", dash), (-offset, ", sign -", "dashdot" if dash == "solid" else dash)]
    for delta, side, of_side in sides:
        y = phi_of(u, *numbers, update.phi, delta)
        template = f"{plain(update.name)}<br>{plain(name)}{side}(%{{x:.2f}} tau) = %{{y:.2f}} tau<extra></extra>"
        figure.add_scatter(
            x=[round(v, 3) for v in u.tolist()],
            y=[round(v, 4) for v in y.tolist()],
            mode="lines",
            line={"color": colour, "width": 1.4, "dash": of_side},
            hovertemplate=template,
            showlegend=False,
            row=place[0],
            col=place[1],
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
    has_grid = [update.c for update in updates if update.c is not None and update.phi in ("sinc", "residual")]
    return max((len(c) // 2 for c in has_grid), default=5)


def _spaced(blocks: list[Any]) -> list[Any]:
    if len(blocks) <= CURVES_OF_BLOCKS:
        return blocks
    last = len(blocks) - 1
    return [blocks[round(n * last / (CURVES_OF_BLOCKS - 1))] for n in range(CURVES_OF_BLOCKS)]


def _broken(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:-1]) + "<br>." + parts[-1] if len(parts) > 1 else name
