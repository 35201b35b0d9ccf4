"""The passes in C++: every instruction set, every dtype, any number of threads, one matrix in memory."""

import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks.measure import peak_bytes
from lrlora.method import update as definition
from lrlora.ops import adapted_linear, eager, native
from lrlora.ops.passes import factors_in_precision, signs_of
from tests.conftest import rel_rms
from tests.ops.cases import CARRIERS, KINDS, carried, inputs, with_gradients

pytestmark = pytest.mark.usefixtures("unchecked_shapes")

HERE = torch.backends.cpu.get_cpu_capability()
NARROWER = {"AVX512": ("avx512", "avx2", "default"), "AVX2": ("avx2", "default")}.get(HERE, ("default",))


def factors_of(given: dict, carrier=None, passes=native.PASSES, rows=None):
    numbers = (given[name] for name in ("A", "B", "c", "tau", "scale"))
    return factors_in_precision(
        passes, *numbers, given["phi"], *signs_of(passes, carrier, given["A"], given["B"], rows)
    )


@pytest.mark.parametrize("capability", NARROWER)
def test_every_instruction_set_is_as_exact_as_the_definition(capability):
    # in a process of its own: torch looks at the processor once
    script = """
import json, torch
from tests.conftest import rel_rms
from tests.ops.cases import KINDS, carried, inputs, with_gradients
import jaxtyping
jaxtyping.config.update("jaxtyping_disable", True)
def layer(size, phi, K, spread, carrier, dtype):
    given = carried(inputs(size, phi, num_basis=K, dtype=dtype), carrier)
    return {**given, "B": given["B"] * spread}
# B A far beyond the grid; around the reach of the series; all within it
far, around, within = ((1, 3), (63, 11), (200, 33), (530, 5)), ((301, 11),), ((63, 3), (200, 33))
for size, K, spread in (*((*s, 1) for s in far), *((*s, 0.1) for s in around), *((*s, 0.02) for s in within)):
    for phi, carrier in KINDS:
        truth = with_gradients(layer(size, phi, K, spread, carrier, torch.float64), "definition")
        single = layer(size, phi, K, spread, carrier, torch.float32)
        plain, ours = with_gradients(single, "eager"), with_gradients(single, "native")
        for name in truth:
            print(json.dumps([phi, carrier is not None, size, name, truth[name].numel(),
                rel_rms(plain[name], truth[name]), rel_rms(ours[name], truth[name])]))
"""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=500, env=environment
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    # y, A, B, c, x and the bias; "sine" has no c
    assert len(lines) == 7 * (6 * len(KINDS) - 1)
    # a sum that cancels to one number has the luck of one number
    assert [line for line in lines if not line[-1] <= 1.5 * line[-2] + 2e-6 / line[-3] ** 0.5] == []


def test_the_backward_pass_holds_one_matrix_of_the_size_of_the_layer():
    given = inputs(1024, "sinc", dtype=torch.float32)
    given["x"] = torch.randn(4, 1024)
    for name in ("x", "A", "B", "c"):
        given[name].requires_grad_()
    one = 4 * 1027 * 1024
    y = adapted_linear(**given, impl="native")
    peak = peak_bytes(lambda: y.sum().backward())
    # G, which becomes W0 + dW; beside it the gradients of A, twice per thread, and of B
    assert one <= peak <= 1.1 * one


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("size", [63, 160, 700])
def test_the_weight_is_rounded_once_to_any_dtype(size, dtype):
    given = inputs(size, "sinc", dtype=torch.float32)
    factors = factors_of(given)
    dW = native.weight(None, factors, torch.float32)
    for W0 in (given["W0"], given["W0"].to(dtype)):
        assert torch.equal(native.weight(W0, factors, dtype), (W0.float() + dW).to(dtype))
    special = torch.tensor([[float("nan"), float("inf"), -float("inf"), 3e38]]).to(dtype).expand(size + 3, 4)
    given["A"] = given["A"][:, :4]
    rounded = native.weight(special, factors_of(given), dtype)
    assert rounded[:, 0].isnan().all() and not rounded[:, 1:3].isfinite().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_from_half_precision_are_those_of_the_same_numbers_in_float32(dtype):
    given = inputs(200, "residual", dtype=torch.float32)
    G = torch.randn(203, 200).to(dtype)
    wide = G.float()
    found, expected = (native.gradients(g, given["W0"], factors_of(given)) for g in (G, wide))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(G, wide.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_rows_of_zeros_are_found_where_sequences_end_in_them(dtype, monkeypatch):
    monkeypatch.setattr(native, "SKIPPED_FROM", 1)

    factors = factors_of(inputs(8, "sinc", dtype=torch.float32))

    def found(dy):
        numbers = native.nonzero_rows(dy, factors)
        return None if numbers is None else numbers.tolist()

    dy = torch.randn(3, 4, 5).to(dtype)
    assert found(dy) is None
    dy[1, 3] = -0.0
    assert found(dy) == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11]
    # in the middle as well, where another row says that there is padding; one number is enough to count
    dy[0, 1], dy[2, 0, :4], dy[2, 1, 1:], dy[2, 2] = 0, 0, 0, torch.finfo(dtype).smallest_normal
    assert found(dy) == [0, 2, 3, 4, 5, 6, 8, 9, 10, 11]
    dy[1, 0] = float("nan")
    assert found(dy) == [0, 2, 3, 4, 5, 6, 8, 9, 10, 11]
    assert found(dy[1]) == [0, 1, 2]
    assert found(torch.zeros_like(dy)) == []
    dy[1, 3] = 1
    assert found(dy) is None
    # what the library does not read
    assert found(dy.mT) is None and found(torch.zeros(5, dtype=dtype)) is None
    assert found(torch.zeros(2, 3, 4, dtype=torch.complex64)) is None
    assert found(torch.zeros(0, 4, dtype=dtype)) is None


def test_rows_of_zeros_are_not_looked_for_where_they_save_too_little():
    factors = factors_of(inputs(384, "sinc", dtype=torch.float32))
    dy = torch.zeros(64, 384)
    assert 384 * dy.numel() < native.SKIPPED_FROM
    assert native.nonzero_rows(dy, factors) is None
    dy = torch.ones(2, 512, 384)
    dy[1, 400:] = 0
    assert native.nonzero_rows(dy, factors) is None
    dy[1, 200:] = 0
    assert native.nonzero_rows(dy, factors).tolist() == list(range(712))


@pytest.mark.parametrize(("phi", "carrier"), KINDS)
def test_the_number_of_threads_changes_only_the_order_of_sums(phi, carrier):
    given = carried(inputs(300, phi, rank=3, dtype=torch.float32), carrier)
    before = torch.get_num_threads()
    found = {}
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found[threads] = with_gradients(given, "native")
    finally:
        torch.set_num_threads(before)
    for threads in (2, 5):
        assert torch.equal(found[threads]["B"], found[1]["B"])
        for name, tensor in found[threads].items():
            assert rel_rms(tensor, found[1][name]) <= 1e-6, name


@pytest.mark.skipif(sys.platform != "linux", reason="threads are torch's on Linux only")
def test_the_threads_are_those_of_torch():
    script = """
import torch
from lrlora.ops import library
assert library.loaded(torch.float32).is_threaded
maps = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
print(*(path for path in maps if any(name in path for name in ("libgomp", "libiomp", "libomp"))))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert len(ended.stdout.split()) == 1


@pytest.mark.parametrize("size", [8, 63, 500])
def test_the_signs_are_those_of_the_definition(size):
    given = inputs(size, "linear", dtype=torch.float32)
    # dW = s sigma o (B A)
    given["c"] = torch.tensor([0.0, 1.0])
    ours = native.weight(None, factors_of(given, CARRIERS[1]), torch.float32)
    plain = {name: given[name] for name in ("A", "B", "c", "tau", "scale", "phi")}
    truth = definition.delta_weight(**plain, carrier=CARRIERS[1])
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)
    rows = torch.tensor([5, 0, 7])
    some = {**given, "B": given["B"][rows]}
    assert torch.equal(native.weight(None, factors_of(some, CARRIERS[1], rows=rows), torch.float32), ours[rows])


class Own(torch.Tensor):
    """A weight with a class of its own, as quantised and sharded ones have."""


def test_a_weight_that_only_its_class_can_read_is_added_by_it():
    given = inputs(100, "sinc", dtype=torch.float32)
    factors = factors_of(given)
    weight = native.weight(given["W0"].as_subclass(Own), factors, torch.float32)
    torch.testing.assert_close(weight.as_subclass(torch.Tensor), native.weight(given["W0"], factors, torch.float32))
    G = torch.randn(103, 100)
    again = G.clone()
    for place, W0 in ((G, given["W0"].as_subclass(Own)), (again, given["W0"])):
        native.gradients(place, W0, factors)
    torch.testing.assert_close(G, again)
    assert "of type Own" in str(native.why_not(given["A"].as_subclass(Own)))


@pytest.mark.parametrize("phi", ["sinc", "residual"])
def test_without_a_knee_phi_is_the_identity(phi):
    given = {**inputs(70, phi, dtype=torch.float32), "tau": float("inf")}
    ours, plain = (with_gradients(given, impl) for impl in ("native", "eager"))
    for name in plain:
        torch.testing.assert_close(ours[name], plain[name], rtol=1e-4, atol=1e-4)


def test_matrices_that_are_not_contiguous():
    given = inputs(90, "sinc", dtype=torch.float32)
    spread = {**given, **{name: given[name].T.contiguous().T for name in ("A", "B", "W0")}}
    assert torch.equal(
        native.weight(spread["W0"], factors_of(spread), torch.float32),
        native.weight(given["W0"], factors_of(given), torch.float32),
    )
    G = torch.randn(90, 93)
    turned, straight = G.clone().T, G.T.contiguous()
    for ours, theirs in zip(
        native.gradients(turned, None, factors_of(given)),
        native.gradients(straight, None, factors_of(given)),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    assert torch.equal(turned, straight)


def test_far_beyond_the_grid_it_agrees_with_the_plain_passes():
    given = {**inputs(64, "residual", dtype=torch.float32), "tau": 1e-7}
    ours = native.weight(None, factors_of(given), torch.float32)
    plain = eager.ON_CPU.weight(None, factors_of(given, passes=eager.ON_CPU), torch.float32)
    assert rel_rms(ours, plain) < 1e-6
