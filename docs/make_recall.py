"""Draws docs/recall.png, exact recall over trained parameters, from three studies: python docs/make_recall.py"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from lrlora.files import read_json

HERE = Path(__file__).parent
RESULTS = HERE.parent / "studies" / "results"
PANELS = {
    "1,000 English-German pairs, eight blocks": {
        "LoRA": ("facts-pairs", "lora-r", "#d2691e", "o"),
        "LoRA, again on a CPU": ("facts-pairs-start", "lora-r", "#7d8a99", "x"),
        "HiRA": ("facts-pairs", "hira-r", "#2a9d6f", "s"),
        "carrier, closed at the start": ("facts-pairs", "linear-closed-r", "#8c9fdf", "o"),
        "carrier, open at the start, on a CPU": ("facts-pairs-start", "linear-open-r", "#3a5fcd", "o"),
    },
    "the countries of 1,000 cities, two blocks": {
        "LoRA": ("facts-cities", "lora-r", "#d2691e", "o"),
        "carrier, open at the start": ("facts-cities", "open-r", "#3a5fcd", "o"),
    },
}
"""By title and label: the study, what its arms begin with, colour and marker."""


def arms_of(study: str, start: str) -> list[dict[str, Any]]:
    """The arms of a summary whose name is `start` and a rank, by their parameters."""
    summary = read_json(RESULTS / study / "summary.json")
    arms = [arm for arm in summary["arms"] if arm["arm"].startswith(start)]
    return sorted(arms, key=lambda arm: arm["trainable_parameters"])


def draw(panel: Any, title: str, lines: dict[str, tuple[str, str, str, str]]) -> None:
    """One task: a line per method, with its ranks as numbers."""
    ticks = set()
    for label, (study, start, colour, marker) in lines.items():
        arms = arms_of(study, start)
        parameters = [arm["trainable_parameters"] for arm in arms]
        ticks |= set(parameters) if label == "LoRA" else set()
        tests = [arm["test"] for arm in arms]
        reach = [[t["mean"] - t["low"] for t in tests], [t["high"] - t["mean"] for t in tests]]
        means = [t["mean"] for t in tests]
        panel.errorbar(parameters, means, reach, color=colour, marker=marker, markersize=5, capsize=3, label=label)
        for x, y, arm in zip(parameters, means, arms, strict=True) if marker != "x" else ():
            rank = f"r = {arm['arm'].removeprefix(start)}"
            panel.annotate(rank, (x, y), (7, -9), textcoords="offset points", fontsize=8, color=colour)
    panel.set_xscale("log", base=2)
    panel.set_xlim(min(ticks) / 1.13, max(ticks) * 1.3)
    panel.set_xticks(sorted(ticks), [f"{tick:,}" for tick in sorted(ticks)])
    panel.set(xlabel="trained parameters", ylabel="exact recall", ylim=(0, 1.05))
    panel.set_title(title, fontsize=10)
    panel.legend(fontsize=8, loc="lower right")


def main() -> None:
    """Means over three seeds with 95 % intervals."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    for panel, (title, lines) in zip(panels, PANELS.items(), strict=True):
        draw(panel, title, lines)
    figure.savefig(HERE / "recall.png", dpi=130)


if __name__ == "__main__":
    main()
