"""Writes docs/performance.md from results/*.json: python -m benchmarks.report"""

from __future__ import annotations

from pathlib import Path

from benchmarks import measure, methods

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"

HEAD = """# Performance

Written by `make bench` (its last step, `python -m benchmarks.report`) from `benchmarks/results/*.json`, which hold all
repeats. The methods take turns in one process; a number is the median of {rounds} rounds; ratios are within one run.

{device}, {threads} threads, torch {torch}, peft {peft}, transformers {transformers}, commit {commit}, {date}.

## The floors

Per adapted layer and training step, in multiplications with T tokens: plain LoRA 2 T out in, full fine-tuning and
LR-LoRA 3 T out in (forward, gradient of the input, and dY^T X, which the gradient of phi needs). So 1.5 times ideal
LoRA and 1.0 times full fine-tuning are what arithmetic allows; what a whole model does besides its linear layers brings
the first number down, the elementwise work on phi brings both up. That work does not depend on T: LR-LoRA is at its
best from about a thousand tokens per step on, and at its worst in short batches.

Memory: the op keeps x, A, B and c for the backward pass, as LoRA does, and holds one matrix of the size of the layer
while that layer is at work.

What has not been measured: the Triton kernels on a GPU. Their bodies are tested through Triton's interpreter, and that
they compile for one.
"""


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def seconds(row: dict) -> dict[str, float]:
    """Median seconds by method."""
    return {name: measure.median(times) for name, times in row["seconds"].items()}


def training_tables(rows: list[dict]) -> str:
    """A table of methods per number of tokens."""
    parts = []
    for row in (r for r in rows if r["what"] == "training step"):
        of = seconds(row)
        lines = [
            [
                name,
                f"{1e3 * of[name]:.0f} ms",
                f"{of[name] / of['LoRA']:.2f}",
                f"{of[name] / of['full fine-tuning']:.2f}",
                f"{row['peak_bytes'][name] / 2**20:.0f} MiB",
            ]
            for name in of
        ]
        parts.append(f"\n### T = {row['T']} tokens\n\n")
        parts.append(table(["method", "step", "x LoRA", "x full fine-tuning", "peak memory"], lines))
    return "".join(parts)


def evaluation_table(rows: list[dict]) -> str:
    """Forward passes without gradients."""
    chosen = [row for row in rows if row["what"] == "evaluation"]
    lines = []
    for row in chosen:
        of = seconds(row)
        lines.append([f"T = {row['T']}"] + [f"{1e3 * t:.1f} ms ({t / of['base']:.2f})" for t in of.values()])
    return table(["tokens", *(f"{name} (x base)" for name in seconds(chosen[0]))], lines)


def basis_table(rows: list[dict]) -> str:
    """The cost of K."""
    (row,) = (row for row in rows if row["what"] == "cost of K")
    of = seconds(row)
    first = next(iter(of.values()))
    return table(
        ["K", "step", "x K = 3"], [[n.split("=")[1], f"{1e3 * t:.0f} ms", f"{t / first:.2f}"] for n, t in of.items()]
    )


def op_table(rows: list[dict]) -> str:
    """One layer, forward and backward."""
    lines = []
    for row in rows:
        of = seconds(row)
        cells = [f"{1e3 * of[name]:.1f}" if name in of else "-" for name in methods.NAMES]
        lines.append([row["shape"], str(row["T"]), str(row["r"]), str(row["K"]), *cells])
    return table(["layer", "T", "r", "K", *(f"{name}, ms" for name in methods.NAMES)], lines)


EVALUATION = """\
Not merged, a layer keeps its dW, a second matrix of its size, and makes it anew when A, B, c, tau or s changed in
value. For 64 rows and more W0 + dW is formed for every call, which moves three matrices through memory, and multiplied
once; for fewer rows, as in generation, x is multiplied with W0 and with dW, so that a token reads two matrices where
the base reads one (experts are summed whole for every token). On a GPU the comparison of values makes the host wait
once or more per layer and call. `merge_adapter()` costs none of this. The table was measured while W0 + dW itself was
kept, and is too good by that sum.

"""


def page() -> str:
    """The text of docs/performance.md."""
    step, op = measure.read("step"), measure.read("op")
    rounds = len(next(iter(step["rows"][0]["seconds"].values())))
    return (
        HEAD.format(rounds=rounds, **step["environment"])
        + "\n## A training step of the embedded encoder\n\nall-MiniLM-L6-v2, all 37 linear layers adapted, r = 8,"
        " K = 11, float32, AdamW included. \"lrlora definition\" is the naive formula through autograd.\n"
        + training_tables(step["rows"])
        + "\n## K\n\nThe same step, T = 1024.\n\n"
        + basis_table(step["rows"])
        + "\n## Evaluation without merging, and merged\n\n"
        + EVALUATION
        + evaluation_table(step["rows"])
        + "\n## One layer, forward and backward\n\nMilliseconds; \"-\": left out because it would need more memory than"
        " the machine has, or is not part of that sweep.\n\n"
        + op_table(op["rows"])
    )  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
