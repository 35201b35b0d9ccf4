import pytest
import torch

from benchmarks.measure import peak_bytes
from lrlora.method import update as definition
from lrlora.method.nonlinearity import FORMS
from lrlora.ops import adapted_linear, by_definition, delta_weight, linear, native
from tests.conftest import rel_rms
from tests.ops.cases import CARRIERS, KINDS, carried, inputs, with_gradients

pytestmark = pytest.mark.usefixtures("unchecked_shapes")


FAST = ["auto", "eager", "native"]


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


@pytest.mark.parametrize(("phi", "carrier"), KINDS)
@pytest.mark.parametrize("impl", ["eager", "native"])
@pytest.mark.parametrize("without", [(), ("W0", "bias")])
def test_a_large_layer_in_tiles_is_the_same_layer(phi, carrier, impl, without, monkeypatch):
    given = carried(inputs(200, phi, dtype=torch.float32), carrier) | dict.fromkeys(without)
    whole = with_gradients(given, impl)
    monkeypatch.setattr(linear, "TILED_FROM", 1)
    # 64 rows of 203, three times, and 11
    monkeypatch.setattr(linear, "TILE", 1)
    tiled = with_gradients(given, impl)
    for name in whole:
        assert rel_rms(tiled[name], whole[name]) < 1e-6, name


def test_no_matrix_of_the_size_of_a_large_layer_is_in_memory():
    x, W0 = torch.randn(4, 2048), torch.randn(8192, 2048)
    A, B = torch.randn(2, 2048, requires_grad=True), torch.randn(8192, 2, requires_grad=True)

    def step():
        adapted_linear(x.requires_grad_(), W0, None, A, B, torch.ones(1), 1.0, 1.0, phi="linear").sum().backward()

    peak = peak_bytes(step)
    tile = 4 * linear.TILE
    assert tile <= peak <= 1.2 * tile < W0.nbytes / 3


def test_a_large_weight_that_only_its_class_can_read_is_not_cut(monkeypatch):
    class Own(torch.Tensor):
        pass

    monkeypatch.setattr(linear, "TILED_FROM", 1)
    monkeypatch.setattr(linear, "TILE", 1)
    given = inputs(100, "sinc", dtype=torch.float32)
    cut = []
    monkeypatch.setattr(Own, "__getitem__", lambda *_: cut.append(True))
    found = with_gradients({**given, "W0": given["W0"].as_subclass(Own)}, "native")
    torch.testing.assert_close(found["y"].as_subclass(torch.Tensor), with_gradients(given, "native")["y"])
    assert cut == []


@pytest.mark.parametrize(("phi", "carrier"), KINDS)
@pytest.mark.parametrize("padding", [(3, 1), (5, 2), (5, 5)])
def test_tokens_whose_output_reaches_no_loss_are_left_out_of_every_product(phi, carrier, padding, monkeypatch):
    exact = carried(inputs(200, phi), carrier)
    truth = with_gradients(exact, "definition", padding)
    given = carried(inputs(200, phi, dtype=torch.float32), carrier)
    computed = []
    product = linear.huge_pages.product
    monkeypatch.setattr(linear.huge_pages, "product", lambda dY, x: computed.append(len(x)) or product(dY, x))
    monkeypatch.setattr(native, "SKIPPED_FROM", 1)
    for tiled_from in (linear.TILED_FROM, 1):
        monkeypatch.setattr(linear, "TILED_FROM", tiled_from)
        found = with_gradients(given, "native", padding)
        for name in truth:
            assert rel_rms(found[name], truth[name]) < 2e-6, name
    assert set(computed) == {10 - sum(padding)}


def test_a_number_that_is_none_does_not_spread_from_padding(monkeypatch):
    given = inputs(16, "sinc", dtype=torch.float32)
    clean = with_gradients(given, "native", padding=(3, 1))
    given["x"][0, 4, 0] = float("nan")
    monkeypatch.setattr(native, "SKIPPED_FROM", 1)
    found = with_gradients(given, "native", padding=(3, 1))
    assert not found["y"][0, 4].isfinite().any()
    for name in ("A", "B", "c", "bias", "x"):
        torch.testing.assert_close(found[name], clean[name], msg=name)


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


def test_a_second_derivative_is_refused_in_words():
    given = inputs(6, "sinc")
    given["A"].requires_grad_()
    with pytest.raises(RuntimeError, match=r"second derivatives .* lrlora\.by_definition"):
        torch.autograd.grad(adapted_linear(**given).sum(), given["A"], create_graph=True)


@pytest.mark.parametrize("tokens", [5, 1000])
def test_gradients_for_several_outputs_at_once(tokens):
    given = inputs(200, "sinc")
    x = given["x"] = torch.randn(2, tokens, 200, dtype=torch.float64, requires_grad=True)
    directions = torch.randn(3, 2, tokens, 203, dtype=torch.float64)

    def batched(*of):
        return torch.autograd.grad(adapted_linear(**given), of, directions, is_grads_batched=True)

    # of x alone they need no pass that reads dY
    one_by_one = [torch.autograd.grad(adapted_linear(**given), x, dy)[0] for dy in directions]
    torch.testing.assert_close(batched(x)[0], torch.stack(one_by_one))
    A = given["A"].requires_grad_()
    with pytest.raises(RuntimeError, match=r"is_grads_batched.* lrlora\.by_definition"):
        batched(x, A)
    one_by_one = [torch.autograd.grad(adapted_linear(**given), A, dy)[0] for dy in directions]
    with by_definition():
        torch.testing.assert_close(batched(A)[0], torch.stack(one_by_one))


@pytest.mark.parametrize(("phi", "carrier"), KINDS)
def test_second_derivatives_are_there_by_definition(phi, carrier):
    small = carried(inputs(4, phi, rank=2, num_basis=5), carrier)
    leaves = {k: small[k].requires_grad_() for k in ("x", "A", "B", "c") if small[k] is not None}

    def call(*tensors):
        return adapted_linear(**{**small, **dict(zip(leaves, tensors, strict=True))})

    with by_definition():
        assert torch.autograd.gradgradcheck(call, tuple(leaves.values()))
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(call(*leaves.values()).sum(), leaves["A"], create_graph=True)


@pytest.mark.parametrize(("phi", "carrier"), KINDS)
def test_transforms_of_torch_func_see_the_plain_formula(phi, carrier):
    given = carried(inputs(12, phi), carrier)
    truth = with_gradients(given, "definition")
    named = {k: given[k] for k in ("A", "B", "c") if given[k] is not None}

    def loss(named, x, direction):
        return (adapted_linear(**{**given, **named, "x": x}) * direction).sum()

    direction = torch.randn_like(truth["y"])
    for_all = torch.func.grad(loss)(named, given["x"], direction)
    row_by_row = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(named, given["x"], direction)
    leaves = {k: v.detach().clone().requires_grad_() for k, v in named.items()}
    loss(leaves, given["x"], direction).backward()
    _, tangent = torch.func.jvp(lambda x: loss(named, x, direction), (given["x"],), (torch.ones_like(given["x"]),))
    slope = torch.func.grad(loss, argnums=1)(named, given["x"], direction).sum()
    torch.testing.assert_close(tangent, slope)
    for name, leaf in leaves.items():
        torch.testing.assert_close(for_all[name], leaf.grad, msg=name)
        torch.testing.assert_close(row_by_row[name].sum(0), leaf.grad, msg=name)
