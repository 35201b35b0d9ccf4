"""The Triton kernels: their bodies through Triton's interpreter, their compilation for a GPU that need not be there."""

import json
import os
import subprocess
import sys

import pytest
import torch

from lrlora.method.nonlinearity import FORMS
from lrlora.ops import adapted_linear
from tests.conftest import rel_rms
from tests.ops.test_fused import inputs, with_gradients

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
from tests.ops.test_fused import carried, inputs
from lrlora.ops import eager, triton
from lrlora.method.carrier import Carrier
from lrlora.ops.fused import factors_in_precision, signs_of
for phi, carrier in (("sinc", None), ("residual", None), ("sine", None), ("linear", None),
    ("sinc", Carrier(0.5, 7)), ("residual", Carrier(0.3, 8)), ("linear", Carrier(0.5, 7)),
):
    for size in (1, 63, 150):
        G = torch.randn(size + 3, size)
        for has_W0 in (True, False):
            found = []
            for module, dtype in ((triton, torch.float32), (eager, torch.float32), (eager, torch.float64)):
                given = carried(inputs(size, phi, dtype=dtype), carrier)
                W0 = given["W0"] if has_W0 else None
                names = ("A", "B", "c", "tau", "scale")
                signs = signs_of(carrier, given["A"], given["B"])
                factors = *factors_in_precision(*(given[name] for name in names), phi, *signs), phi
                place = G.to(dtype, copy=True)
                gradients = module.gradients(place, W0, *factors)
                found.append((module.weight(W0, *factors, dtype), place, *gradients))
            for ours, plain, truth in zip(*found):
                if truth is not None:
                    print(json.dumps([phi, size, rel_rms(ours, truth), rel_rms(plain, truth)]))
"""
    lines = [json.loads(line) for line in run(script, TRITON_INTERPRET="1").splitlines()]
    # three sizes, with W0 and without: weight twice, dA, dB, and dc for the forms that have one, carried or not
    assert len(lines) == 6 * (5 + 5 + 4 + 5 + 5 + 5 + 5)
    assert [line for line in lines if not line[2] <= 1.5 * line[3] + 5e-7] == []


def test_the_kernels_compile_for_a_gpu():
    # in a process of its own, without the interpreter; ptxas comes with Triton, a GPU is not needed
    code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lrlora.ops import triton as ours
for form, half, is_carried in ((0, 5, False), (1, 0, False), (2, 0, False), (0, 5, True), (2, 0, True)):
    for kernel in (ours._weight_kernel, ours._gradient_kernel):
        names = kernel.arg_names
        numbers = {"FORM": form, "HALF": half, "HAS_W0": True, "ROWS": ours.BLOCK_ROWS, "COLUMNS": ours.BLOCK_COLUMNS}
        numbers["IS_CARRIED"] = is_carried
        if kernel is ours._gradient_kernel:
            numbers["WIDTH"] = 2 if form == 2 else 13 if is_carried else 11
        kinds = {**dict.fromkeys(("rows", "columns", "rank"), "i32"), **dict.fromkeys(numbers, "constexpr")}
        kinds |= dict.fromkeys(("of_rows", "of_columns"), "*i32")
        signature = {name: kinds.get(name, "*fp32") for name in names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=numbers)
        made = triton.compile(source, target=GPUTarget("cuda", 80, 32))
        print(len(made.asm["cubin"]))
"""
    assert all(int(size) > 1000 for size in run(code).split())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("phi", FORMS)
@pytest.mark.parametrize("size", [1, 63, 100, 1000])
def test_on_a_gpu_it_is_as_exact_as_the_definition(phi, size):
    truth = with_gradients(inputs(size, phi), "definition")
    single = inputs(size, phi, dtype=torch.float32)
    single = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in single.items()}
    reference, fast = with_gradients(single, "definition"), with_gradients(single, "triton")
    for name in truth:
        bound = 1.5 * rel_rms(reference[name].cpu(), truth[name]) + 2e-7
        assert rel_rms(fast[name].cpu(), truth[name]) <= bound, name


def test_elsewhere_it_is_refused():
    with pytest.raises(ValueError, match="Triton kernels are for CUDA, got cpu"):
        adapted_linear(**inputs(8, "sinc"), impl="triton")
