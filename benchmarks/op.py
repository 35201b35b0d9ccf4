"""One linear layer, forward and backward: shapes of real models, tokens T, basis K, rank r. python -m benchmarks.op"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from benchmarks import measure, methods

SMALL = {"MiniLM 384x384": (384, 384), "SmolLM2 576x576": (576, 576), "RoBERTa-base 768x768": (768, 768)}
LARGE = {"LLaMA-2-7B 4096x4096": (4096, 4096), "LLaMA-2-7B 11008x4096": (11008, 4096)}
ROUNDS = 9


def layer(name: str, shape: tuple[int, int], r: int, num_basis: int) -> nn.Module:
    """One adapted linear layer."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("layer", nn.Linear(shape[1], shape[0]))
    return methods.adapt(name, model, r, num_basis, target_modules=["layer"])


def measure_layer(names: tuple[str, ...], label: str, shape: tuple[int, int], tokens: int, r: int, K: int) -> dict:
    """One row: seconds of forward and backward of every method, and its peak memory."""
    x = torch.randn(tokens, shape[1], requires_grad=True)
    direction = torch.randn(tokens, shape[0])

    def step_of(name):
        model = layer(name, shape, r, K)

        def step():
            (model(x) * direction).sum().backward()
            x.grad = None
            model.zero_grad()

        return step

    steps = {name: step_of(name) for name in names}
    times = measure.in_turn(steps, ROUNDS)
    row = {"shape": label, "T": tokens, "r": r, "K": K, "seconds": times}
    row["peak_bytes"] = {name: measure.peak_bytes(step) for name, step in steps.items()}
    shown = {name: f"{1e3 * measure.median(t):.2f}" for name, t in times.items()}
    print(label, f"T={tokens} r={r} K={K} ms:", shown, flush=True)
    return row


def rows() -> Iterator[dict]:
    """Every row, as it is measured."""
    for label, shape in SMALL.items():
        for tokens in (64, 256, 1024):
            yield measure_layer(methods.NAMES, label, shape, tokens, 8, 11)
    label, shape = "RoBERTa-base 768x768", SMALL["RoBERTa-base 768x768"]
    for r in (4, 32):
        yield measure_layer(("LoRA", "lrlora native"), label, shape, 1024, r, 11)
    # the definition would keep 11 matrices several times over: more than this machine has
    for label, shape in LARGE.items():
        yield measure_layer(methods.FEW, label, shape, 256, 8, 11)


def main() -> None:
    """All rows, into op.json of this CPU's instructions."""
    measure.write_each(measure.on_this_cpu("op"), rows())


if __name__ == "__main__":
    main()
