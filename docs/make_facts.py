"""Draws docs/recall.png, exact recall over trained parameters, and docs/bits.png, bits over facts, from the studies.

python docs/make_facts.py
"""

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
        "rsLoRA, r = 4": ("facts-cities", "rslora-r", "#b8a13a", "^"),
        "HiRA": ("facts-cities", "hira-r", "#2a9d6f", "s"),
        "carrier, open at the start": ("facts-cities", "open-r", "#3a5fcd", "o"),
    },
}
"""By title and label: the study, what its arms begin with, colour and marker."""

FACTS = {
    "lora-r1": ("LoRA, r = 1", "#d2691e", "o"),
    "lora-r2": ("LoRA, r = 2", "#d2691e", "s"),
    "linear-closed-r1": ("carrier, closed at the start, r = 1", "#8c9fdf", "o"),
    "linear-open-r1": ("carrier, open at the start, r = 1", "#3a5fcd", "o"),
}
"""By arm of facts-over-d and facts-encoder: label, colour and marker."""


def arms_of(study: str, start: str) -> list[dict[str, Any]]:
    """The arms of a summary whose name is `start` and a rank, by their parameters."""
    summary = read_json(RESULTS / study / "summary.json")
    arms = [arm for arm in summary["arms"] if arm["arm"].startswith(start)]
    return sorted(arms, key=lambda arm: arm["trainable_parameters"])


def curve(panel: Any, xs: list[int], arms: list[dict[str, Any]], label: str, colour: str, **style: Any) -> list[float]:
    """The means of some arms over xs, with their intervals; gives the means."""
    tests = [arm["test"] for arm in arms]
    means = [t["mean"] for t in tests]
    reach = [[t["mean"] - t["low"] for t in tests], [t["high"] - t["mean"] for t in tests]]
    panel.errorbar(xs, means, reach, color=colour, capsize=3, label=label, **{"markersize": 5, **style})
    return means


def draw(panel: Any, title: str, lines: dict[str, tuple[str, str, str, str]]) -> None:
    """One task: a line per method, with its ranks as numbers."""
    ticks = set()
    for label, (study, start, colour, marker) in lines.items():
        arms = arms_of(study, start)
        parameters = [arm["trainable_parameters"] for arm in arms]
        ticks |= set(parameters) if label == "LoRA" else set()
        # HiRA lies where the carrier does: a larger mark is seen around a smaller one
        means = curve(panel, parameters, arms, label, colour, marker=marker, markersize=9 if marker == "s" else 5)
        for x, y, arm in zip(parameters, means, arms, strict=True) if marker in ("o", "s") else ():
            rank = f"r = {arm['arm'].removeprefix(start)}"
            panel.annotate(rank, (x, y), (7, -9), textcoords="offset points", fontsize=8, color=colour)
    panel.set_xscale("log", base=2)
    panel.set_xlim(min(ticks) / 1.13, max(ticks) * 1.3)
    panel.set_xticks(sorted(ticks), [f"{tick:,}" for tick in sorted(ticks)])
    panel.set(xlabel="trained parameters", ylabel="exact recall", ylim=(0, 1.05))
    panel.set_title(title, fontsize=10)
    panel.legend(fontsize=8, loc="lower right")


def count_of(arm: dict[str, Any]) -> int:
    """D, from the name of the task."""
    return int(arm["task"].removeprefix("d"))


def bits_over_facts() -> None:
    """Means over three seeds with 95 % intervals, and all bits that the facts have."""
    both = ("facts-over-d", "facts-encoder")
    results = [arm for study in both for arm in read_json(RESULTS / study / "summary.json")["arms"]]
    results = sorted((arm for arm in results if arm["arm"] in FACTS), key=count_of)
    counts = sorted({count_of(arm) for arm in results})
    figure, panel = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    for name, (label, colour, marker) in FACTS.items():
        arms = [arm for arm in results if arm["arm"] == name]
        curve(panel, counts, arms, label, colour, marker=marker, linestyle="--" if marker == "s" else "-")
    panel.plot(counts, [4 * count for count in counts], color="#7d8a99", linewidth=1, label="all bits, 4 a fact")
    panel.set_xscale("log", base=2)
    panel.set_xticks(counts, [f"{count:,}" for count in counts])
    panel.set(xlabel="facts", ylabel="bits held", ylim=(0, 1.1 * max(arm["test"]["high"] for arm in results)))
    panel.legend(fontsize=8, loc="upper left")
    figure.savefig(HERE / "bits.png", dpi=130)


def main() -> None:
    """Means over three seeds with 95 % intervals."""
    bits_over_facts()
    figure, panels = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    for panel, (title, lines) in zip(panels, PANELS.items(), strict=True):
        draw(panel, title, lines)
    figure.savefig(HERE / "recall.png", dpi=130)


if __name__ == "__main__":
    main()
