"""Where the time of one adapted layer goes, next to what the machine can do: python -m benchmarks.passes

The least that a layer can take is its three products, at the speed that they have here, and each pass of phi at the
roofline of the machine: the bytes that it must move at the speed of a copy (W0 in and the weight out, or W0 and G in
and the weight out), or its multiplications at the speed of a product of matrices, whichever takes longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import measure
from lrlora import ops
from lrlora.method.nonlinearity import initial_coefficients
from lrlora.method.rank import product_rms
from lrlora.ops.expansion import expansion
from lrlora.ops.passes import factors_in_precision, signs_of

SHAPES = {"MiniLM 384x384": (384, 384), "MiniLM 1536x384": (1536, 384), "LLaMA-2-7B 4096x4096": (4096, 4096)}
TOKENS = (64, 256, 1024)
ROUNDS = 9
SPREADS = (0.18, 0.8, 3.0)
"""RMS(B A) / tau: in the studies, in the demo, and where a fifth of the entries is far away."""
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
    W0, A, B, c, tau = _matrices(shape, r, K, SPREADS[0])
    both = _both_passes(W0, A, B, c, tau)
    leaves = [tensor.clone().requires_grad_() for tensor in (A, B, c)]
    full = W0.clone().requires_grad_()

    def whole():
        y = ops.adapted_linear(x, W0, None, *leaves, tau, 2.0, phi="sinc")
        torch.autograd.grad(y, [x, *leaves], dy)

    def fully():
        torch.autograd.grad(torch.nn.functional.linear(x, full), [x, full], dy)

    held = x.detach()
    steps = {
        "x W^T": lambda: held @ W0.T,
        "dY^T X": lambda: dy.T @ held,
        "dY W": lambda: dy @ W0,
        **both,
        "layer": whole,
        "full fine-tuning": fully,
    }
    row = {"what": "layer", "shape": label, "entries": rows * columns, "T": tokens, "r": r, "K": K}
    # B A, and E and O; then B A, all four parts, the moments, dA and dB
    terms = int(expansion(K, False).terms[0])
    row["multiplications"] = {"weight": r + 2 * terms, "gradients": 3 * r + 6 * terms}
    row["seconds"] = measure.in_turn(steps, ROUNDS)
    shown = {name: f"{1e3 * measure.median(t):.2f}" for name, t in row["seconds"].items()}
    print(label, f"T={tokens} ms:", shown, flush=True)
    return row


def spread_row(spread: float, r: int = 8) -> dict:
    """One row: both passes alone at a spread of B A, with three K."""
    label = "MiniLM 1536x384"
    steps = {}
    for K in (3, 11, 33):
        torch.manual_seed(0)
        both = _both_passes(*_matrices(SHAPES[label], r, K, spread))
        steps.update({f"{name} K={K}": step for name, step in both.items()})
    row = {"what": "spread", "shape": label, "spread": spread, "r": r, "seconds": measure.in_turn(steps, ROUNDS)}
    print(spread, {name: f"{1e3 * measure.median(t):.2f}" for name, t in row["seconds"].items()}, flush=True)
    return row


def _matrices(shape: tuple[int, int], r: int, K: int, spread: float) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """W0, A, B, c, and tau such that RMS(B A) / tau is `spread`."""
    rows, columns = shape
    A, B = torch.randn(r, columns) / columns**0.5, 0.1 * torch.randn(rows, r)
    tau = product_rms(A, B).item() / spread
    return torch.randn(shape) / columns**0.5, A, B, initial_coefficients(K, "sinc"), tau


def _both_passes(W0: Tensor, A: Tensor, B: Tensor, c: Tensor, tau: float) -> dict[str, Callable[[], object]]:
    passes, name = ops.choose("auto", A, B)
    assert name == "native", name
    factors = factors_in_precision(passes, A, B, c, tau, 2.0, "sinc", *signs_of(passes, None, A, B))
    G = torch.randn(W0.shape)
    return {
        "weight": lambda: passes.weight(W0, factors, torch.float32),
        "gradients": lambda: passes.gradients(G, W0, factors),
    }


def least(row: dict, top: dict) -> float:
    """Seconds that this layer takes at least: its products as measured, and its passes at the roofline."""
    of = {name: measure.median(times) for name, times in row["seconds"].items()}
    bytes_per_second = top["copied_bytes"] / measure.median(top["seconds"]["copy"])
    per_second = top["multiplications"] / measure.median(top["seconds"]["product"])
    passes = 0.0
    for name, moved in (("weight", 8), ("gradients", 12)):
        work = row["multiplications"][name]
        passes += row["entries"] * max(moved / bytes_per_second, work / per_second)
    return of["x W^T"] + of["dY^T X"] + of["dY W"] + passes


def rows() -> Iterator[dict]:
    """Every row, as it is measured."""
    yield ceilings()
    for label, shape in SHAPES.items():
        for tokens in TOKENS:
            yield layer_row(label, shape, tokens)
    for spread in SPREADS:
        yield spread_row(spread)


def main() -> None:
    """All rows, into passes.json of this CPU's instructions."""
    measure.write_each(measure.on_this_cpu("passes"), rows())


if __name__ == "__main__":
    main()
