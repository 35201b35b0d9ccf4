"""The Triton kernels: their bodies through Triton's interpreter, their compilation for a GPU that need not be there."""

import json
import os
import subprocess
import sys

import pytest

from lrlora.ops import adapted_linear
from tests.ops.cases import inputs

pytest.importorskip("triton", reason="Triton is not installed")


def run(script: str, **environment: str) -> str:
    """What a script prints in a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


def test_the_kernels_compute_what_the_plain_passes_compute():
    # in a process of its own: Triton decides when it is imported whether it interprets
    script = """
import json, torch
from tests.conftest import rel_rms
from tests.ops.cases import carried, inputs
from lrlora.ops import eager, triton
from lrlora.method.carrier import Carrier
from lrlora.ops.passes import factors_in_precision, signs_of
# one number, such as dc of "linear", has no exact digits where its sum cancels: the same sums in every run
torch.manual_seed(0)
for phi, carrier in (("sinc", None), ("residual", None), ("sine", None), ("linear", None),
    ("sinc", Carrier(0.5, 7)), ("residual", Carrier(0.3, 8)), ("linear", Carrier(0.5, 7)),
):
    for size in (1, 63, 150):
        G = torch.randn(size + 3, size)
        for has_W0 in (True, False):
            found = []
            plain = eager.ON_CPU
            for passes, dtype in ((triton.PASSES, torch.float32), (plain, torch.float32), (plain, torch.float64)):
                given = carried(inputs(size, phi, dtype=dtype), carrier)
                W0 = given["W0"] if has_W0 else None
                names = ("A", "B", "c", "tau", "scale")
                signs = signs_of(passes, carrier, given["A"], given["B"])
                factors = factors_in_precision(passes, *(given[name] for name in names), phi, *signs)
                place = G.to(dtype, copy=True)
                gradients = passes.gradients(place, W0, factors)
                found.append((passes.weight(W0, factors, dtype), place, *gradients))
            for ours, plain, truth in zip(*found):
                if truth is not None:
                    print(json.dumps([phi, size, rel_rms(ours, truth), rel_rms(plain, truth)]))
"""
    lines = [json.loads(line) for line in run(script, TRITON_INTERPRET="1").splitlines()]
    # three sizes, with W0 and without: weight twice, dA, dB, and dc for the forms that have one, carried or not
    assert len(lines) == 6 * (5 + 5 + 4 + 5 + 5 + 5 + 5)
    assert [line for line in lines if not line[2] <= 1.5 * line[3] + 5e-7] == []


def test_rows_by_number_and_tiles_have_the_signs_of_their_place():
    script = """
import torch
from tests.ops.cases import carried, inputs
from lrlora.ops import triton
from lrlora.method.carrier import Carrier
from lrlora.ops.passes import factors_in_precision, signs_of
carrier = Carrier(0.5, 7)
given = carried(inputs(50, "sinc", dtype=torch.float32), carrier)
A, B, *rest = (given[name] for name in ("A", "B", "c", "tau", "scale"))
def made(passes, B, rows=None):
    factors = factors_in_precision(passes, A, B, *rest, "sinc", *signs_of(passes, carrier, A, B, rows))
    return passes.weight(None, factors, torch.float32)
whole = made(triton.PASSES, B)
tiled = made(triton.of_tiles(1000), B)
rows = torch.tensor([40, 3, 17])
print(torch.equal(whole, tiled), torch.equal(whole[rows], made(triton.PASSES, B[rows], rows)))
"""
    assert run(script, TRITON_INTERPRET="1").split() == ["True", "True"]


def test_the_kernels_compile_for_a_gpu():
    # in a process of its own, without the interpreter; ptxas comes with Triton, a GPU is not needed
    code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lrlora.ops import triton as ours
from lrlora.ops.triton_kernels import gradient_kernel, weight_kernel
pointers = ("out", "G", "dZ", "dc", "A", "B", "W0", "c", "tau_at", "sincs")
for form, half, is_carried in ((0, 5, False), (1, 5, False), (2, 0, False), (3, 0, False), (0, 5, True), (3, 0, True)):
    for kernel in (weight_kernel, gradient_kernel):
        constants = {"FORM": form, "HALF": half, "HAS_W0": True, "IS_CARRIED": is_carried, "HAS_NUMBERS": False}
        constants |= {"ROWS": ours.BLOCK_ROWS, "COLUMNS": ours.BLOCK_COLUMNS}
        kinds = {**dict.fromkeys(constants, "constexpr"), **dict.fromkeys(pointers, "*fp32"), "seed": "*i64"}
        kinds |= {"row_numbers": "*i64", "scale": "fp32", "offset": "fp32"}
        signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        made = triton.compile(source, target=GPUTarget("cuda", 80, 32))
        print(len(made.asm["cubin"]))
"""
    assert all(int(size) > 1000 for size in run(code).split())


def test_elsewhere_it_is_refused():
    with pytest.raises(ValueError, match="Triton kernels are for CUDA, got cpu"):
        adapted_linear(**inputs(8, "sinc"), impl="triton")
