"""On a CUDA device: the two kernels, one layer, and whole training steps in bf16: python -m benchmarks.gpu

Times are taken with everything queued and one synchronisation at the end. They are what a training run pays: the
device's work, or Python's where that is longer. The methods take turns; a number is the median of `ROUNDS` rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import measure, methods
from lrlora.method.carrier import Carrier, starting_coefficients
from lrlora.method.nonlinearity import initial_coefficients
from lrlora.ops import choose
from lrlora.ops.passes import factors_in_precision, signs_of

SHAPES = {"4096x4096": (4096, 4096), "11008x4096": (11008, 4096)}
KERNELS: dict[str, tuple[str, int, Carrier | None]] = {
    "sinc K=3": ("sinc", 3, None),
    "sinc K=11": ("sinc", 11, None),
    "sinc K=33": ("sinc", 33, None),
    "sinc K=11 carrier": ("sinc", 11, Carrier(0.5, 7)),
    "linear": ("linear", 1, None),
    "linear carrier": ("linear", 2, Carrier(0.5, 7)),
    "sine": ("sine", 0, None),
}
LAYERS = ("full fine-tuning", "LoRA", "DoRA", "HiRA", "lrlora triton", "lrlora carrier triton",
          "lrlora carrier linear triton")  # fmt: skip
STEPS = ("full fine-tuning", "LoRA", "DoRA", "lrlora triton", "lrlora carrier triton", "lrlora carrier linear triton")
ROUNDS, REPEATS = 9, 5


def seconds(step: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Seconds of one of several steps in a row."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


def in_turn(
    steps: dict[str, Callable[[], Any]], rounds: int = ROUNDS, repeats: int = REPEATS
) -> dict[str, list[float]]:
    """Seconds of every step in every round."""
    for step in steps.values():
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, repeats))
    return times


def peak_bytes(step: Callable[[], Any]) -> int:
    """Most bytes that torch held on the device during a step, beyond what it held before."""
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - held


def ceilings() -> dict[str, Any]:
    """Bytes and floating-point operations per second that this device reaches."""
    source, target = (torch.randn(1 << 28, device="cuda") for _ in range(2))
    copies = in_turn({"copy": lambda: target.copy_(source)})["copy"]
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    products = in_turn({"product": lambda: a @ b})["product"]
    copy_bytes, product_flops = 2 * 4 * 2**28, 2 * 8192**3
    row = {"what": "ceilings", "copy_bytes_per_s": copy_bytes / measure.median(copies)}
    row["bf16_flops_per_s"] = product_flops / measure.median(products)
    print(row, flush=True)
    return row


def kernel_row(label: str, shape: tuple[int, int], r: int = 8) -> dict[str, Any]:
    """One row: seconds of both passes without the products around them, W0 apart and the gradient in bf16."""
    out_features, in_features = shape
    A, B = torch.randn(r, in_features, device="cuda") / 64, torch.randn(out_features, r, device="cuda") / 64
    passes: dict[str, Callable[[], Any]] = {}
    for name, (phi, num_basis, carrier) in KERNELS.items():
        c = None
        if carrier is not None:
            c = starting_coefficients(num_basis, phi, carrier.offset, "half").cuda()
        elif phi != "sine":
            c = initial_coefficients(num_basis, phi).cuda()
        triton, _ = choose("triton", A, B)
        tau = torch.tensor(0.05 / 64, device="cuda") if phi != "linear" else torch.tensor(torch.inf, device="cuda")
        factors = factors_in_precision(triton, A, B, c, tau, 2.0, phi, *signs_of(triton, carrier, A, B))
        G = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        passes[f"{name}, weight"] = lambda f=factors, p=triton: p.weight(None, f, torch.bfloat16)
        passes[f"{name}, gradients"] = lambda f=factors, p=triton, G=G: p.gradients(G, None, f)
    row = {"what": "passes", "shape": label, "r": r, "seconds": in_turn(passes)}
    _show(row, 1e3)
    return row


def layer_row(label: str, shape: tuple[int, int], tokens: int, r: int = 8) -> dict[str, Any]:
    """One row: forward and backward of one linear layer in bf16, and its peak memory."""
    direction = torch.randn(tokens, shape[0], device="cuda", dtype=torch.bfloat16)
    x = torch.randn(tokens, shape[1], device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def step_of(name):
        torch.manual_seed(0)
        model = nn.Sequential()
        model.add_module("layer", nn.Linear(shape[1], shape[0], bias=False, device="cuda", dtype=torch.bfloat16))
        model = methods.adapt(name, model, r, target_modules=["layer"])

        def step():
            (model(x) * direction).sum().backward()
            x.grad = None
            model.zero_grad()

        return step

    steps = {name: step_of(name) for name in LAYERS}
    row = {"what": "layer", "shape": label, "T": tokens, "r": r, "seconds": in_turn(steps)}
    row["peak_bytes"] = {name: peak_bytes(step) for name, step in steps.items()}
    _show(row, 1e3)
    return row


def decoder(name: str, blocks: int) -> nn.Module:
    """A decoder as wide as LLaMA-2 7B, with random weights in bf16, all linear layers under a method."""
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=blocks, num_attention_heads=32, vocab_size=32000,
        use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            base = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return methods.adapt(name, base, 8, target_modules="all-linear", task_type="CAUSAL_LM").train()


def step_row(tokens: int, blocks: int = 4, rounds: int = ROUNDS) -> dict[str, Any]:
    """One row: forward, backward and AdamW of a decoder; one method at a time, as all of them would not fit."""
    length = min(tokens, 2048)
    ids = torch.randint(0, 32000, (tokens // length, length), device="cuda")
    times, peaks = {}, {}
    for name in STEPS:
        model = decoder(name, blocks)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

        def step(model=model, optimizer=optimizer):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        times |= in_turn({name: step}, rounds, 2)
        peaks[name] = torch.cuda.memory_allocated() + peak_bytes(step)
        del model, optimizer, step
        torch.cuda.empty_cache()
    row = {"what": "training step", "blocks": blocks, "T": tokens, "r": 8, "seconds": times, "peak_bytes": peaks}
    _show(row, 1e3)
    return row


def _show(row: dict[str, Any], factor: float) -> None:
    shown = {name: f"{factor * measure.median(t):.3f}" for name, t in row["seconds"].items()}
    print(row["what"], row.get("shape", ""), f"T={row.get('T', '-')} ms:", shown, flush=True)


def main() -> None:
    """All rows, into results/gpu.json."""
    rows = [ceilings()]
    rows += [kernel_row(label, shape) for label, shape in SHAPES.items()]
    for label, shape in SHAPES.items():
        rows += [layer_row(label, shape, tokens) for tokens in (512, 2048, 8192)]
    rows += [step_row(tokens) for tokens in (512, 2048, 8192)]
    measure.write("gpu", rows, {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda})


if __name__ == "__main__":
    main()
