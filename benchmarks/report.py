"""Writes docs/performance.md from results/*.json: python -m benchmarks.report"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks import measure, methods, passes

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"

HEAD = """# Performance

Written by `make bench` and `make bench-demo` (their last step, `python -m benchmarks.report`) from
`benchmarks/results/`, a folder for each set of instructions, which hold all repeats. The methods take turns in one
process; a number is the median of {rounds} rounds; ratios are within one run. What takes less than 30 ms is run for as
long, not timed, before each round.

{machines}

## The floors

Per adapted layer and training step, in multiplications with T tokens: plain LoRA 2 T out in, full fine-tuning and
LR-LoRA 3 T out in (forward, gradient of the input, and dY^T X, which the gradient of phi needs). So 1.5 times ideal
LoRA and 1.0 times full fine-tuning are what arithmetic allows; what a whole model does besides its linear layers brings
the first number down, the elementwise work on phi brings both up. That work does not depend on T: LR-LoRA is at its
best from about a thousand tokens per step on, and at its worst in short batches.

Padding costs less: on a CPU, tokens whose output reaches no loss are left out of dY^T X and of the gradient of the
input, where they save enough. The batches below have none.

Memory: the op keeps x, A, B and c for the backward pass, as LoRA does, and holds one matrix of the size of the layer
while that layer is computed; in float32 on a CPU one of 16 MiB at most where the layer has 32 MiB or more.
"""


MACHINE = """\
- {cpu}: {device}, {threads} threads, torch {torch}, peft {peft}, transformers {transformers}, commit {commit},
  {date}.
"""


def cpus(name: str) -> list[str]:
    """The folders of results/ that hold NAME.json, one per set of instructions: avx2, avx512."""
    return sorted(path.parent.name for path in measure.RESULTS.glob(f"*/{name}.json"))


def on_each(name: str, section: Callable[[dict], str]) -> str:
    """A section of NAME.json, with each set of instructions, the commit that was measured, and how often."""
    parts = []
    for cpu in cpus(name):
        measured = measure.read(f"{cpu}/{name}")
        of = "{device}, {threads} threads, commit {commit}, {date}".format(**measured["environment"])
        rounds = len(next(iter(measured["rows"][0]["seconds"].values())))
        parts.append(f"{cpu.upper()} ({of}, medians of {rounds}):\n\n{section(measured)}")
    return "\n".join(parts)


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def seconds(row: dict) -> dict[str, float]:
    """Median seconds by method."""
    return {name: measure.median(times) for name, times in row["seconds"].items()}


def training_rows(rows: list[dict]) -> list[dict]:
    """Those of training steps, one per number of tokens."""
    return [row for row in rows if row["what"] == "training step"]


def short_table() -> str:
    """LR-LoRA over LoRA and over full fine-tuning, with each set of instructions."""
    lines = []
    for cpu in cpus("step"):
        for row in training_rows(measure.read(f"{cpu}/step")["rows"]):
            of = seconds(row)
            ratios = (of["lrlora native"] / of[name] for name in ("LoRA", "full fine-tuning"))
            lines.append([cpu.upper(), str(row["T"]), *(f"{ratio:.2f}" for ratio in ratios)])
    return table(["instructions", "tokens", "x LoRA", "x full fine-tuning"], lines)


def training_tables(rows: list[dict], suffix: str = "") -> str:
    """A table of methods per number of tokens."""
    parts = []
    for row in training_rows(rows):
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
        parts.append(f"\n### T = {row['T']} tokens{suffix}\n\n")
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
Not merged, a layer caches its dW, a second matrix of its size, and computes it again when A, B, c, tau or s changed in
value. For 64 rows and more W0 + dW is formed for every call, which moves three matrices through memory, and multiplied
once. For fewer rows, as in generation, x is multiplied with W0 and with dW: a token reads two matrices where the base
reads one (experts are summed whole for every token). In training mode, as in the rollouts of trl's GRPO, fewer rows use
the cached dW from the second call without gradients on, and a call with gradients frees it. On a GPU the comparison of
values makes the host wait once or more per layer and call. `merge_adapter()` costs none of this.

"""


FIRST_RUN = """
## The first step

On a CPU the passes of phi are a C++ library that is compiled once per machine, at the first use, and kept in
`$XDG_CACHE_HOME/lrlora`; `lrlora train` compiles it while it loads its model. Seconds of whole runs of `lrlora train`
on the demo, one method each, from the start of the process to its end: LoRA, LR-LoRA with a cache that has no library
yet, and LR-LoRA again. Of what LR-LoRA takes beyond LoRA most is dY^T X and the passes of phi in each of
the 100 steps.

"""

PARTS = """
## Where the time of a layer goes

Milliseconds of the parts of one adapted layer in float32, r = 8, K = 11.
"weight" reads W0 and writes W0 + dW; "gradients" reads W0 and G, writes W0 + dW over G and gives dA, dB and dc. The
least that a layer can take are its three products as they were measured, and both passes at the roofline: the bytes
that they move at the speed of a copy, or their multiplications ({weight} and {gradients} an entry) at that of a product
of matrices, whichever is longer. "layer" is a whole step through autograd: the three products, "weight" and
"gradients", and Python, which takes about a quarter of a millisecond, most of what a small layer takes beyond that.

RMS(B A) / tau was 0.17 to 0.19 in the studies, and 0.5 to 1.3 after the demo. Up to 3.9 tau the passes compute a
series, whose length depends on the distance and not on K; beyond, every sinc. The second table has the passes of a
{shape} layer.

"""

CEILINGS = """\
A copy moves {copy:.1f} GB/s (read and written), a product of matrices does {product:.0f} GFLOP/s.

"""


def first_run_table(measured: dict) -> str:
    """Whole runs of the demo, from first_run.json."""
    (row,) = measured["rows"]
    lines = [
        [name, f"{t:.1f} s", f"{span(row['seconds'][name], 1)} s", f"{beyond_lora(row, name):+.1f} s"]
        for name, t in seconds(row).items()
    ]
    return table(["run", "seconds", "of all rounds", "beyond LoRA's of the same round"], lines)


def beyond_lora(row: dict, name: str) -> float:
    """Seconds of a run of the demo beyond LoRA's run just before it, as a median: the machine's speed drifts."""
    rounds = zip(row["seconds"][name], row["seconds"]["LoRA"], strict=True)
    return measure.median([time - lora for time, lora in rounds])


def parts_section() -> str:
    """The parts of a layer, from passes.json of each set of instructions."""
    rows = measure.read(f"{cpus('passes')[0]}/passes")["rows"]
    (shape,) = {row["shape"] for row in rows if row["what"] == "spread"}
    counted = next(row["multiplications"] for row in rows if row["what"] == "layer")
    return PARTS.format(shape=shape, **counted) + on_each("passes", parts_tables)


def parts_tables(measured: dict) -> str:
    """What the machine can do, the parts of a layer, and the passes by the spread of B A."""
    top, *rows = (row for row in measured["rows"] if row["what"] != "spread")
    of_top = seconds(top)
    lines = []
    for row in rows:
        of, bound = seconds(row), passes.least(row, top)
        parts = [f"{1e3 * of[name]:.2f}" for name in ("x W^T", "weight", "dY^T X", "gradients", "dY W", "layer")]
        ratios = f"{1e3 * bound:.2f}", f"{of['layer'] / bound:.2f}", f"{of['layer'] / of['full fine-tuning']:.2f}"
        lines.append([row["shape"], str(row["T"]), *parts, *ratios])
    numbers = {
        "copy": top["copied_bytes"] / of_top["copy"] / 1e9,
        "product": 2 * top["multiplications"] / of_top["product"] / 1e9,
    }
    headings = ["layer", "T", "x W^T", "weight", "dY^T X", "gradients", "dY W", "layer", "least", "x least", "x full"]
    return CEILINGS.format(**numbers) + table(headings, lines) + "\n" + spread_table(measured["rows"])


def spread_table(rows: list[dict]) -> str:
    """The passes by the spread of B A and by K."""
    chosen = [row for row in rows if row["what"] == "spread"]
    lines = [[str(row["spread"]), *(f"{1e3 * t:.2f}" for t in seconds(row).values())] for row in chosen]
    return table(["RMS(B A) / tau", *(f"{name}, ms" for name in seconds(chosen[0]))], lines)


def sentence() -> str:
    """The README's words about speed on a CPU, from step.json and first_run.json of each set of instructions."""
    ratios: dict[int, list[float]] = {}
    of_full: list[float] = []
    for cpu in cpus("step"):
        for row in training_rows(measure.read(f"{cpu}/step")["rows"]):
            of = seconds(row)
            ratios.setdefault(row["T"], []).append(of["lrlora native"] / of["LoRA"])
            of_full += [of["lrlora native"] / of["full fine-tuning"]] if row["T"] == 1024 else []
    runs = [measure.read(f"{cpu}/first_run")["rows"][0] for cpu in cpus("first_run")]
    beyond, lora = [beyond_lora(run, "lrlora, first") for run in runs], [seconds(run)["LoRA"] for run in runs]
    return (
        f"{span(ratios[1024])} times a LoRA step with 1,024 tokens per step, {span(ratios[4096])} times with 4,096 and"
        f" {span(ratios[256])} times with 256 ({span(of_full)} times full fine-tuning's with 1,024), on two cores with"
        f" {' and '.join(cpu.upper() for cpu in cpus('step'))} instructions. A first run of the demo"
        f" takes {span(beyond, 0)} s more than LoRA's {span(lora, 0)} s"
    )


def span(numbers: list[float], digits: int = 2) -> str:
    """The least and the greatest, or one where they are the same."""
    ends = [f"{end(numbers):.{digits}f}" for end in (min, max)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def carrier_table(measured: dict) -> str:
    """What a carrier adds to a training step, from carrier.json."""
    lines = []
    for row in measured["rows"]:
        of = seconds(row)
        plain = of["lrlora native"]
        lines.append([f"T = {row['T']}"] + [f"{1e3 * t:.0f} ms ({t / plain:.2f})" for t in of.values()])
    return table(["tokens", *seconds(measured["rows"][0])], lines)


GPU = """
## On a GPU

Written from `make gpu`. {device}, torch {torch}, CUDA {cuda}, transformers {transformers}, peft {peft}, {date}.
A copy moves {copy:.1f} TB/s there, and a product of matrices in bf16 does {product:.0f} TFLOP/s. The base and all
products are in bf16; A, B, c and phi in float32. W0 and dW stay two products, because W0 + dW in bf16 would round the
update away.

A training step of a decoder as wide as LLaMA-2 7B, {blocks} blocks, random weights, all linear layers adapted, r = 8,
K = 11, fused AdamW, sequences of at most 2048 tokens; the peak holds the weights.
"""

PASSES = """
Only the two passes, milliseconds: "weight" writes dW in bf16; "gradients" reads G and writes dW over it, dZ, and the
three gradients. A copy of as many bytes takes {weight:.3f} and {gradients:.3f} ms for a layer of 4096x4096.
Both are bound by arithmetic, the second most of all: each basis function has a sum over all entries of its own.

"""


def gpu_section() -> str:
    """The tables of results/gpu.json."""
    measured = measure.read("gpu")
    rows = measured["rows"]
    (top,) = (row for row in rows if row["what"] == "ceilings")
    speed = top["copy_bytes_per_s"]
    steps = training_rows(rows)
    alone = [row for row in rows if row["what"] == "passes"]
    names = [name.removesuffix(", weight") for name in alone[0]["seconds"] if name.endswith(", weight")]
    numbers = {"copy": speed / 1e12, "product": top["bf16_flops_per_s"] / 1e12, "blocks": steps[0]["blocks"]}
    lines = [
        [
            name,
            *(f"{1e3 * seconds(row)[f'{name}, {which}']:.3f}" for row in alone for which in ("weight", "gradients")),
        ]
        for name in names
    ]
    entries = 4096 * 4096
    return (
        GPU.format(**measured["environment"], **numbers)
        + training_tables(steps)
        # dW in bf16; G in, dW out, dZ out in float32 and in again for each of dA and dB
        + PASSES.format(weight=1e3 * 2 * entries / speed, gradients=1e3 * 16 * entries / speed)
        + table(["phi", *(f"{row['shape']} {which}" for row in alone for which in ("weight", "gradients"))], lines)
        + "\nOne layer, forward and backward, milliseconds; Python's own work counts where it is longer.\n\n"
        + gpu_layers([row for row in rows if row["what"] == "layer"])
    )


def gpu_layers(rows: list[dict]) -> str:
    """A line per shape and number of tokens."""
    names = list(rows[0]["seconds"])
    lines = [[row["shape"], str(row["T"]), *(f"{1e3 * seconds(row)[name]:.2f}" for name in names)] for row in rows]
    return table(["layer", "T", *names], lines)


def page() -> str:
    """The text of docs/performance.md."""
    steps = {cpu: measure.read(f"{cpu}/step") for cpu in cpus("step")}
    (rounds,) = {len(times) for step in steps.values() for row in step["rows"] for times in row["seconds"].values()}
    machines = "".join(MACHINE.format(cpu=cpu.upper(), **step["environment"]) for cpu, step in steps.items())
    return (
        HEAD.format(rounds=rounds, machines=machines.rstrip("\n"))
        + "\n## A training step of the embedded encoder\n\nall-MiniLM-L6-v2, all 37 linear layers adapted, r = 8,"
        " K = 11, float32, AdamW included. LR-LoRA in short, then every method; \"lrlora definition\" is the naive"
        " formula through autograd.\n\n"
        + short_table()
        + "".join(training_tables(step["rows"], f", {cpu.upper()}") for cpu, step in steps.items())
        + "\n## K\n\nThe same step, T = 1024.\n\n"
        + on_each("step", lambda step: basis_table(step["rows"]))
        + "\n## The carrier\n\nThe same training step, in brackets over LR-LoRA without a carrier.\n\n"
        + on_each("carrier", carrier_table)
        + parts_section()
        + FIRST_RUN
        + on_each("first_run", first_run_table)
        + "\n## Evaluation without merging, and merged\n\n"
        + EVALUATION
        + on_each("step", lambda step: evaluation_table(step["rows"]))
        + "\n## One layer, forward and backward\n\nMilliseconds; \"-\": left out because it would need more memory than"
        " the machine has, or is not part of that sweep.\n\n"
        + on_each("op", lambda op: op_table(op["rows"]))
        + gpu_section()
    )  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
