"""Draws docs/llm.png from the logs of the runs in docs/llm/: python docs/make_llm.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

from lrlora.files import read_json_lines

HERE = Path(__file__).parent
TASKS = {"gsm8k": "GSM8K", "chat": "Alpaca rows"}
METHODS = {"lrlora": ("LR-LoRA", "#3a5fcd"), "lora": ("LoRA", "#d2691e")}
SMOOTHED = 5
"""Logged losses in a moving mean; each is itself a mean over 5 steps."""


def losses(task: str, method: str, name: str) -> list[tuple[int, float]]:
    """The losses of that name in a run's log.jsonl by step; of steps done again after a stop, the last."""
    lines = read_json_lines(HERE / "llm" / f"{task}-{method}.log.jsonl")
    return sorted({line["step"]: line[name] for line in lines if name in line}.items())


def main() -> None:
    """A panel per task: training loss as a line, loss on held-out rows as points."""
    figure, panels = plt.subplots(1, len(TASKS), figsize=(9, 3.4), layout="constrained")
    for panel, (task, title) in zip(panels, TASKS.items(), strict=True):
        for method, (label, colour) in METHODS.items():
            training, held_out = losses(task, method, "loss"), losses(task, method, "eval_loss")
            steps = [step for step, _ in training][SMOOTHED - 1 :]
            means = [
                sum(loss for _, loss in training[end - SMOOTHED : end]) / SMOOTHED
                for end in range(SMOOTHED, len(training) + 1)
            ]
            panel.plot(steps, means, color=colour, alpha=0.5, label=f"{label}, training")
            panel.plot(*zip(*held_out, strict=True), "o-", color=colour, markersize=4, label=f"{label}, held out")
        panel.set(title=title, xlabel="step of 4 rows", ylabel="loss in nats a token")
        panel.legend(fontsize=8)
    figure.savefig(HERE / "llm.png", dpi=130)


if __name__ == "__main__":
    main()
