import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from lrlora.method import update as definition
from lrlora.method.carrier import Carrier, starting_coefficients
from lrlora.method.nonlinearity import FORMS, initial_coefficients
from lrlora.ops import IMPLEMENTATIONS, adapted_linear, choose, compiled, delta_weight, eager, tiles
from lrlora.ops.dispatch import using
from lrlora.ops.passes import factors_in_precision, signs_of
from tests.conftest import rel_rms

pytestmark = pytest.mark.usefixtures("unchecked_shapes")

FAST = ["auto", "eager", "compiled"]


def inputs(size: int, phi: str, rank: int = 4, num_basis: int = 11, dtype: torch.dtype = torch.float64) -> dict:
    """One layer [size + 3, size] whose B A reaches over the whole grid and beyond, with entries on grid points."""
    generator = torch.Generator().manual_seed(size)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    A, B, tau = random(rank, size), random(size + 3, rank), 0.5
    # the first row of B A is tau times a whole number
    A[0], B[0] = torch.randint(-7, 8, (size,), generator=generator), tau * torch.eye(rank, dtype=torch.float64)[0]
    c = None
    if phi != "sine":
        c = initial_coefficients(num_basis, phi).double()
        c = c + 0.1 * random(len(c))
    given = dict(x=random(2, 5, size), W0=random(size + 3, size), bias=random(size + 3), A=A, B=B, c=c, tau=tau)
    cast = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    return {**cast, "scale": 1.5, "phi": phi}


CARRIERS = [None, Carrier(0.5, seed=3)]


def carried(given: dict, carrier: Carrier | None) -> dict:
    """The same layer with a carrier, half open; entries then lie on grid points and between them."""
    if carrier is None:
        return given
    c = starting_coefficients(len(given["c"]), given["phi"], carrier.offset, "half").to(given["c"])
    return {**given, "c": c + 0.1 * torch.sin(torch.arange(len(c))).to(c), "carrier": carrier}


def with_gradients(given: dict, impl: str) -> dict[str, torch.Tensor]:
    """Output and gradients of the inputs that are trained, for one random direction of the output."""
    leaves = {k: given[k].clone().requires_grad_() for k in ("x", "A", "B", "c", "bias") if given[k] is not None}
    y = adapted_linear(**{**given, **leaves}, impl=impl)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)
    gradients = torch.autograd.grad((y * direction).sum(), list(leaves.values()))
    return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}


KINDS = [(phi, carrier) for phi in FORMS for carrier in CARRIERS if phi != "sine" or carrier is None]


@pytest.mark.parametrize(("phi", "carrier"), KINDS)
@pytest.mark.parametrize("size", [1, 63, 100, 1000])
@pytest.mark.parametrize("impl", FAST)
def test_output_and_every_gradient_are_as_exact_as_the_definition(size, phi, carrier, impl):
    exact = carried(inputs(size, phi), carrier)
    truth = with_gradients(exact, "definition")
    single = carried(inputs(size, phi, dtype=torch.float32), carrier)
    reference, fast = with_gradients(single, "definition"), with_gradients(single, impl)
    for name in truth:
        # the error of few numbers is luck, the definition's as well: four roundings of one, none of very many
        allowed = 1.5 * rel_rms(reference[name], truth[name]) + 5e-7 / truth[name].numel() ** 0.5
        assert rel_rms(fast[name], truth[name]) <= allowed, name


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("phi", ["sinc", "residual"])
@pytest.mark.parametrize("size", [1, 63, 200])
def test_with_a_carrier_nothing_moves_where_B_is_zero(size, phi, impl):
    given = carried(inputs(size, phi, dtype=torch.float32), CARRIERS[1])
    given |= {"B": torch.zeros_like(given["B"]), "W0": None, "bias": None}
    found = with_gradients(given, impl)
    for name in ("y", "A", "c", "x"):
        assert torch.equal(found[name], torch.zeros_like(found[name])), name
    assert found["B"].abs().max() > 0


@pytest.mark.parametrize("entries", [1, 1000, 1 << 20])
def test_the_tiles_do_not_change_the_signs(entries):
    given = carried(inputs(150, "sinc", dtype=torch.float32), CARRIERS[1])
    numbers = (given[name] for name in ("A", "B", "c", "tau", "scale"))
    passes = dataclasses.replace(eager.ON_CPU, tile_entries=entries)
    factors = factors_in_precision(passes, *numbers, "sinc", *signs_of(passes, CARRIERS[1], given["A"], given["B"]))
    made = tiles.weight(passes, None, factors, torch.float32)
    # B A of a tile is rounded otherwise, but a sign that moved would change an entry as a whole
    plain = {name: given[name] for name in ("A", "B", "c", "tau", "scale", "phi", "carrier")}
    torch.testing.assert_close(made, definition.delta_weight(**plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("phi", "carrier"), KINDS)
@pytest.mark.parametrize("impl", FAST)
def test_float64_equals_the_definition_and_passes_gradcheck(phi, carrier, impl):
    given = carried(inputs(63, phi), carrier)
    truth, fast = with_gradients(given, "definition"), with_gradients(given, impl)
    for name in truth:
        assert rel_rms(fast[name], truth[name]) < 1e-12, name
    small = carried(inputs(4, phi, rank=2, num_basis=5), carrier)
    leaves = {k: small[k].requires_grad_() for k in ("x", "A", "B", "c", "bias") if small[k] is not None}

    def call(*tensors):
        return adapted_linear(**{**small, **dict(zip(leaves, tensors, strict=True))}, impl=impl)

    assert torch.autograd.gradcheck(call, tuple(leaves.values()))


@pytest.mark.parametrize("phi", FORMS)
def test_nothing_but_x_and_the_factors_is_kept_for_the_backward_pass(phi):
    given = inputs(40, phi, dtype=torch.float32)
    leaves = {k: given[k].requires_grad_() for k in ("x", "A", "B", "c") if given[k] is not None}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        adapted_linear(**given)
    assert sorted(kept) == sorted(t.data_ptr() for t in leaves.values())


@pytest.mark.parametrize("bias", [True, False])
def test_the_output_may_be_changed_in_place(bias):
    # as Longformer does with its queries
    given = inputs(8, "sinc", dtype=torch.float32)
    given["bias"] = given["bias"] if bias else None
    expected = adapted_linear(**given)
    given["A"].requires_grad_()
    y = adapted_linear(**given)
    y /= 2
    y.sum().backward()
    assert given["A"].grad is not None
    torch.testing.assert_close(2 * y, expected)


def test_without_w0_it_is_the_share_of_the_update():
    given = inputs(20, "sinc")
    alone = adapted_linear(**{**given, "W0": None, "bias": None})
    whole = adapted_linear(**given)
    base = torch.nn.functional.linear(given["x"], given["W0"], given["bias"])
    torch.testing.assert_close(alone + base, whole)


def test_delta_weight_equals_the_definition():
    given = inputs(300, "residual")
    factors = {k: given[k] for k in ("A", "B", "c", "tau", "scale", "phi")}
    torch.testing.assert_close(delta_weight(**factors), definition.delta_weight(**factors), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8), (2, 3, 2, 8), (0, 8), (2, 0, 8)])
def test_inputs_of_any_number_of_axes(shape):
    given = inputs(8, "sinc")
    given["x"] = torch.randn(shape, dtype=torch.float64)
    truth, fast = with_gradients(given, "definition"), with_gradients(given, "auto")
    assert fast["y"].shape == (*shape[:-1], 11)
    for name in truth:
        torch.testing.assert_close(fast[name], truth[name])


def test_inputs_that_are_not_contiguous():
    given = inputs(6, "sinc")
    given["x"] = torch.randn(6, 5, 4, dtype=torch.float64).transpose(0, 2)
    given["A"] = given["A"].T.contiguous().T
    truth, fast = with_gradients(given, "definition"), with_gradients(given, "auto")
    for name in truth:
        torch.testing.assert_close(fast[name], truth[name])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_in_x_reach_the_output_and_the_gradients(bad):
    given = inputs(16, "sinc", dtype=torch.float32)
    given["x"][0, 0, 0] = bad
    found = with_gradients(given, "auto")
    assert not found["y"][0, 0].isfinite().any()
    assert found["y"][0, 1:].isfinite().all()
    for name in ("A", "B", "c"):
        assert not found[name].isfinite().all(), name


def test_half_precision_products_with_float32_factors():
    given = inputs(64, "sinc", dtype=torch.float32)
    truth = with_gradients(inputs(64, "sinc"), "definition")
    for half in (torch.bfloat16, torch.float16):
        halved = {**given, "x": given["x"].to(half)}
        found = with_gradients(halved, "auto")
        assert found["y"].dtype == half
        assert (found["A"].dtype, found["c"].dtype) == (torch.float32, torch.float32)
        for name in truth:
            assert rel_rms(found[name], truth[name]) < 0.02, (name, half)


def test_autocast_runs_the_product_in_half_precision_and_phi_in_float32():
    given = inputs(64, "sinc", dtype=torch.float32)
    truth = with_gradients(inputs(64, "sinc"), "definition")
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(given, "auto")
    assert found["y"].dtype == torch.bfloat16
    for name in truth:
        assert rel_rms(found[name], truth[name]) < 0.02, name


def test_only_what_is_asked_for_is_computed():
    given = inputs(12, "sinc")
    given["x"].requires_grad_()
    adapted_linear(**given).sum().backward()
    frozen = definition.adapted_linear(**{**given, "x": (x := given["x"].detach().clone().requires_grad_())})
    frozen.sum().backward()
    torch.testing.assert_close(given["x"].grad, x.grad)


def test_shapes_and_names_that_cannot_be_are_refused():
    given = inputs(8, "sinc")
    with pytest.raises(ValueError, match="x ends in 5 features, needed 8"):
        adapted_linear.__wrapped__(**{**given, "x": torch.ones(2, 5)})
    with pytest.raises(ValueError, match="impl must be one of"):
        adapted_linear.__wrapped__(**given, impl="fastest")


def test_the_backend_that_is_chosen_and_why():
    assert set(IMPLEMENTATIONS) == {"auto", "definition", "eager", "compiled", "triton"}
    small, large = ((torch.ones(2, n), torch.ones(n, 2)) for n in (8, 300))
    assert choose("auto", *small)[1] == "eager, because so small a matrix is not worth a compilation"
    with using(compiled.PASSES):
        assert choose("auto", *large) == (compiled.PASSES, "compiled")
    assert choose("eager", *large)[1] == "eager was asked for"


@pytest.mark.parametrize("impl", FAST)
def test_nothing_is_read_before_it_is_written(impl):
    given = inputs(200, "sinc", dtype=torch.float32)
    expected = with_gradients(given, impl)
    # torch fills what torch.empty gives with NaN while this is on
    torch.use_deterministic_algorithms(True)
    try:
        found = with_gradients(given, impl)
    finally:
        torch.use_deterministic_algorithms(False)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


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


def test_a_second_derivative_is_refused_in_words():
    given = inputs(6, "sinc")
    given["A"].requires_grad_()
    with pytest.raises(RuntimeError, match=r"second derivatives .* impl='definition'"):
        torch.autograd.grad(adapted_linear(**given).sum(), given["A"], create_graph=True)


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
