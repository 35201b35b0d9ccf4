"""The curve of a search as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lrlora.export.tolerance.curve import Point
from lrlora.files import new_file


def draw_curve(file: Path, metric: str, points: Sequence[Point], own: float, limit: float, chosen: int) -> None:
    """Draw a metric over the parameters, with the adapter's own, the limit and the size that was chosen.

    Args:
        file: PNG file, written under a temporary name and renamed.
        metric: its name.
        points: what was measured.
        own: the metric of the adapter.
        limit: the worst metric within the tolerance.
        chosen: parameters of the export.
    """
    points = sorted(points, key=lambda point: point.parameters)
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    sizes, values = [point.parameters for point in points], [point.scores[metric] for point in points]
    axis.plot(sizes, values, "o-", color="C0", linewidth=1, markersize=4, label="plain LoRA cut from it")
    axis.axhline(own, color="black", linewidth=1, label=f"the adapter, {own:.4f}")
    axis.axhline(limit, color="black", linewidth=1, linestyle=":", label=f"within the tolerance, {limit:.4f}")
    axis.axvline(chosen, color="C1", linewidth=1, label=f"exported, {chosen:,} parameters")
    axis.set_xscale("log")
    axis.set_xlabel("parameters of the factors")
    axis.set_ylabel("loss (nats)" if metric == "loss" else metric)
    axis.legend(fontsize=8)
    with new_file(file) as beside:
        figure.savefig(beside, dpi=120, format="png")
