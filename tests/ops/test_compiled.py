"""Compilations: how many, how much memory, and what happens where none can be made."""

import os
import subprocess
import sys

import pytest
import torch

from lrlora.ops import adapted_linear, compiled
from lrlora.ops.dispatch import using
from tests.ops.cases import inputs, with_gradients

pytestmark = pytest.mark.usefixtures("unchecked_shapes")


def test_the_backward_pass_holds_one_matrix_of_the_size_of_the_layer():
    given = inputs(1024, "sinc", dtype=torch.float32)
    given["x"] = torch.randn(4, 1024)
    leaves = {k: given[k].requires_grad_() for k in ("x", "A", "B", "c")}
    y = adapted_linear(**given, impl="compiled")
    y.sum().backward()
    one = 4 * 1027 * 1024
    before = {k: v.grad for k, v in leaves.items()}
    y = adapted_linear(**given, impl="compiled")
    with torch.profiler.profile(profile_memory=True) as profiled:
        y.sum().backward()
    assert before["A"] is not None
    held = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    # G, which becomes W0 + dW; the tiles of B A and dZ, 2 MiB each
    assert one <= peak <= 1.2 * one + 2 * 4 * compiled.TILE_ENTRIES


def test_one_compilation_serves_many_shapes():
    compiler = compiled.Compiler()
    with using(compiler.passes()):
        for size in (130, 200, 301, 450):
            given = inputs(size, "sinc", num_basis=3, dtype=torch.float32)
            with_gradients(given, "compiled")
        assert len(compiler.has_run) == 2, "one forward, one backward"
        torch._dynamo.utils.counters.clear()
        with_gradients(inputs(700, "sinc", num_basis=3, dtype=torch.float32), "compiled")
    assert not torch._dynamo.utils.counters["frames"]


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "/nonexistent/g++"}, "no C++ compiler found"),
        ({"CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": ""}, "torch.compile failed"),
        ({"TORCH_COMPILE_DISABLE": "1"}, "switched off in the environment"),
    ],
)
def test_without_a_compiler_the_plain_passes_run_and_say_why_once(environment, reason, tmp_path):
    script = """
import logging, torch, lrlora
from lrlora.ops import choose
logging.basicConfig()
A, B = torch.randn(2, 300, requires_grad=True), torch.randn(200, 2)
for _ in range(2):
    lrlora.adapted_linear(torch.ones(300), None, None, A, B, torch.randn(5), 0.1, 1.0, phi="sinc").sum().backward()
print(choose("auto", A, B)[1])
"""
    # an empty cache, so that torch must compile
    environment = {k: v or str(tmp_path) for k, v in environment.items()}
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("eager, because ") and reason in ended.stdout
    assert ended.stderr.count("LR-LoRA runs its plain passes") == (0 if "switched" in reason else 1)
