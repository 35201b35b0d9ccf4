"""The learned ranks of a run as a picture: a heatmap of block x module, next to its baseline (null)."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from lrlora.files import new_file
from lrlora.ranks.measure import LayerRank


def rank_heatmap(rows: list[LayerRank], path: Path) -> None:
    """Draw SR(dW) and SR(B A) of every layer on one colour scale, blocks as rows, modules as columns.

    A stack of experts is one cell, their mean.

    Args:
        rows: as `layer_ranks` returns them.
        path: PNG file, written under a temporary name and renamed.
    """
    modules = sorted({row.module for row in rows}, key=[row.module for row in rows].index)
    blocks = sorted({row.block for row in rows}, key=lambda b: (b is None, b))
    panels = (("stable rank of dW", "stable_rank"), ("stable rank of BA, the null", "stable_rank_ba"))
    top = max(getattr(row, field) for row in rows for _, field in panels)
    size = (3.5 + 1.6 * len(modules), 2.6 + 0.42 * len(blocks))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    image = None
    for axis, (title, field) in zip(axes, panels, strict=True):
        grid = [[float("nan")] * len(modules) for _ in blocks]
        values: dict[tuple[int, int], list[float]] = {}
        for row in rows:
            values.setdefault((blocks.index(row.block), modules.index(row.module)), []).append(getattr(row, field))
        for (y, x), found in values.items():
            grid[y][x] = sum(found) / len(found)
        image = axis.imshow(grid, vmin=1, vmax=max(top, 1.001), cmap="viridis", aspect="auto")
        for y, line in enumerate(grid):
            for x, value in enumerate(line):
                if value == value:
                    shade = "black" if value > 1 + 0.6 * (top - 1) else "white"
                    axis.text(x, y, f"{value:.2f}", ha="center", va="center", color=shade, fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(len(modules)), modules, rotation=35, ha="right", fontsize=8)
        axis.set_yticks(range(len(blocks)), ["-" if b is None else str(b) for b in blocks], fontsize=8)
    axes[0].set_ylabel("block")
    assert image is not None
    figure.colorbar(image, ax=axes, shrink=0.9)
    with new_file(path) as beside:
        figure.savefig(beside, dpi=120, format="png")
