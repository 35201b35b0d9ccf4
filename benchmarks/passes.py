"""Where the time of one adapted layer goes, next to what the machine can do: python -m benchmarks.passes

The least that a layer can take is its three products, at the speed that they have here, and the passes of phi at the
speed of a copy of the bytes that they must move: W0 in and the weight out, then W0 and G in and the weight out.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks import measure
from lrlora import ops
from lrlora.method.nonlinearity import initial_coefficients
from lrlora.ops.passes import factors_in_precision, signs_of

SHAPES = {"MiniLM 384x384": (384, 384), "MiniLM 1536x384": (1536, 384), "LLaMA-2-7B 4096x4096": (4096, 4096)}
TOKENS = (64, 256, 1024)
ROUNDS = 15
TAU = 0.08
"""B A then has a root mean square of 0.18 tau, as it had in training in the studies."""
COPIED = 1 << 25
"""Bytes of the matrix whose copy says what memory can do: far more than the caches hold."""


def ceilings() -> dict:
    """One row: a copy and a product of matrices."""
    source, target = torch.ones(COPIED // 4), torch.ones(COPIED // 4)
    square = torch.randn(2048, 2048)
    out = torch.empty(2048, 2048)
    steps = {"copy": lambda: target.copy_(source), "product": lambda: torch.mm(square, square, out=out)}
    return {
        "what": "ceilings",
        "copied_bytes": 2 * COPIED,
        "multiplications": 2048**3,
        "seconds": measure.in_turn(steps, ROUNDS),
    }


def layer_row(label: str, shape: tuple[int, int], tokens: int, r: int = 8, K: int = 11) -> dict:
    """One row: every part of a step, the step as a whole, and the same linear map fully fine-tuned."""
    torch.manual_seed(0)
    rows, columns = shape
    x, dy = torch.randn(tokens, columns, requires_grad=True), torch.randn(tokens, rows)
    W0, A, B = torch.randn(shape) / columns**0.5, torch.randn(r, columns) / columns**0.5, 0.1 * torch.randn(rows, r)
    c = initial_coefficients(K, "sinc")
    given = (A, B, c, TAU, 2.0)
    passes, name = ops.choose("auto", A, B)
    assert name == "native", name
    factors = factors_in_precision(passes, *given, "sinc", *signs_of(passes, None, A, B))
    G = torch.randn(shape)
    leaves = [tensor.clone().requires_grad_() for tensor in (A, B, c)]
    full = W0.clone().requires_grad_()

    def whole():
        y = ops.adapted_linear(x, W0, None, *leaves, TAU, 2.0, phi="sinc")
        torch.autograd.grad(y, [x, *leaves], dy)

    def fully():
        torch.autograd.grad(torch.nn.functional.linear(x, full), [x, full], dy)

    held = x.detach()
    steps = {
        "x W^T": lambda: held @ W0.T,
        "dY^T X": lambda: dy.T @ held,
        "dY W": lambda: dy @ W0,
        "weight": lambda: passes.weight(W0, factors, torch.float32),
        "gradients": lambda: passes.gradients(G, W0, factors),
        "layer": whole,
        "full fine-tuning": fully,
    }
    row = {"what": "layer", "shape": label, "entries": rows * columns, "T": tokens, "r": r, "K": K}
    row["seconds"] = measure.in_turn(steps, ROUNDS)
    shown = {name: f"{1e3 * measure.median(t):.2f}" for name, t in row["seconds"].items()}
    print(label, f"T={tokens} ms:", shown, flush=True)
    return row


def least(row: dict, top: dict) -> float:
    """Seconds that this layer takes at least: its products as measured, and its bytes at the speed of a copy."""
    of = {name: measure.median(times) for name, times in row["seconds"].items()}
    bytes_per_second = top["copied_bytes"] / measure.median(top["seconds"]["copy"])
    return of["x W^T"] + of["dY^T X"] + of["dY W"] + 4 * (2 + 3) * row["entries"] / bytes_per_second


def rows() -> Iterator[dict]:
    """Every row, as it is measured."""
    yield ceilings()
    for label, shape in SHAPES.items():
        for tokens in TOKENS:
            yield layer_row(label, shape, tokens)


def main() -> None:
    """All rows, into results/passes.json."""
    measure.write_each("passes", rows(), {"instructions": torch.backends.cpu.get_cpu_capability()})


if __name__ == "__main__":
    main()
