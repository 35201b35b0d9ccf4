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
from tests.ops.test_fused import inputs
from lrlora.method.fast import knee
from lrlora.ops import eager, triton
for phi in ("sinc", "residual", "sine"):
    for size in (1, 63, 150):
        given = inputs(size, phi, dtype=torch.float32)
        for W0 in (given["W0"], None):
            factors = given["A"], given["B"], given["c"], knee(given["tau"], given["scale"], phi, given["A"]), phi
            weights = [m.weight(W0, *factors, torch.float32) for m in (triton, eager)]
            G = torch.randn(weights[0].shape)
            places = [G.clone(), G.clone()]
            gradients = [m.gradients(place, W0, *factors) for m, place in zip((triton, eager), places)]
            for ours, plain in zip((weights[0], places[0], *gradients[0]), (weights[1], places[1], *gradients[1])):
                if plain is not None:
                    print(json.dumps([phi, size, rel_rms(ours, plain.double())]))
"""
    lines = [json.loads(line) for line in run(script, TRITON_INTERPRET="1").splitlines()]
    # three sizes, with W0 and without: weight twice, dA, dB, and dc for the two forms that have one
    assert len(lines) == 6 * (5 + 5 + 4)
    assert [line for line in lines if not line[2] < 2e-6] == []


def test_the_kernels_compile_for_a_gpu():
    # in a process of its own, without the interpreter; ptxas comes with Triton, a GPU is not needed
    code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lrlora.ops import triton as ours
for form, half in ((0, 5), (1, 0)):
    for kernel in (ours._weight_kernel, ours._gradient_kernel):
        names = kernel.arg_names
        numbers = {"FORM": form, "HALF": half, "HAS_W0": True, "ROWS": ours.BLOCK_ROWS, "COLUMNS": ours.BLOCK_COLUMNS}
        kinds = {**dict.fromkeys(("rows", "columns", "rank"), "i32"), **dict.fromkeys(numbers, "constexpr")}
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
