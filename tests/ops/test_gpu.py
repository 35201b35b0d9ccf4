"""The Triton kernels on a CUDA device, against the definition on the CPU in float64."""

import pytest
import torch

from lrlora import LRLoraConfig, ops
from lrlora.method.carrier import Carrier, hashes, is_minus
from lrlora.ops import adapted_linear
from lrlora.ops.dispatch import using
from tests.conftest import rel_rms, tiny_llama
from tests.ops.cases import KINDS, carried, inputs, with_gradients

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("unchecked_shapes"),
]


def on_gpu(given: dict) -> dict:
    """The same layer on the device."""
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in given.items()}


@pytest.mark.parametrize(("phi", "carrier"), KINDS)
@pytest.mark.parametrize("size", [1, 63, 100, 1000])
def test_it_is_as_exact_as_the_definition(phi, carrier, size):
    truth = with_gradients(carried(inputs(size, phi), carrier), "definition")
    single = on_gpu(carried(inputs(size, phi, dtype=torch.float32), carrier))
    reference, fast = with_gradients(single, "definition"), with_gradients(single, "triton")
    for name in truth:
        # the error of few numbers is luck, the definition's as well: four roundings of one, none of very many
        bound = 1.5 * rel_rms(reference[name].cpu(), truth[name]) + 5e-7 / truth[name].numel() ** 0.5
        assert rel_rms(fast[name].cpu(), truth[name]) <= bound, name


@pytest.mark.parametrize("K", [3, 7, 33])
def test_other_numbers_of_basis_functions(K):
    given = carried(inputs(100, "sinc", num_basis=K), Carrier(0.5, 3))
    truth = with_gradients(given, "definition")
    single = on_gpu({k: v.float() if isinstance(v, torch.Tensor) else v for k, v in given.items()})
    reference, fast = with_gradients(single, "definition"), with_gradients(single, "triton")
    for name in truth:
        assert rel_rms(fast[name].cpu(), truth[name]) <= 1.5 * rel_rms(reference[name].cpu(), truth[name]) + 5e-7, name


@pytest.mark.parametrize(("phi", "carrier"), KINDS)
def test_a_layer_of_several_tiles_is_one_layer(phi, carrier):
    given = on_gpu(carried(inputs(1000, phi, dtype=torch.float32), carrier))
    whole = with_gradients(given, "triton")
    # not at the top: Triton need not be there
    from lrlora.ops import triton

    with using(triton.of_tiles(100_000)):
        tiled = with_gradients(given, "triton")
    for name, tensor in tiled.items():
        assert rel_rms(tensor, whole[name]) <= 2e-6, name


@pytest.mark.parametrize(("phi", "carrier"), KINDS)
def test_two_runs_give_the_same_bits(phi, carrier):
    given = on_gpu(carried(inputs(1000, phi, dtype=torch.float32), carrier))
    first, second = with_gradients(given, "triton"), with_gradients(given, "triton")
    for name in ("A", "B", "c"):
        assert name not in first or torch.equal(first[name], second[name]), name


def test_the_signs_are_those_of_the_cpu():
    here, there = (is_minus(*hashes(torch.tensor(11, device=d), 3000, 2000, d)).cpu() for d in ("cpu", "cuda"))
    assert torch.equal(here, there)


@pytest.mark.parametrize("size", [63, 1000])
def test_the_kernels_signs_are_those_of_the_definition(size):
    given = carried(inputs(size, "linear", dtype=torch.float32), Carrier(0.5, 5))
    given["c"] = torch.tensor([0.0, 1.0])  # dW = s sigma o (B A)
    factors = (given["A"], given["B"], given["c"], given["tau"], 1.0)
    how = dict(phi="linear", carrier=given["carrier"])
    truth = ops.adapted_weight(None, *factors, **how, impl="definition")
    found = ops.adapted_weight(None, *(f.cuda() if isinstance(f, torch.Tensor) else f for f in factors), **how).cpu()
    assert torch.equal(found < 0, truth < 0)


def test_some_rows_of_an_update_are_rows_of_the_whole():
    given = on_gpu(carried(inputs(200, "sinc", dtype=torch.float32), Carrier(0.5, 5)))
    factors = (given["A"], given["B"], given["c"], given["tau"], 1.0)
    how = dict(phi="sinc", carrier=given["carrier"])
    rows = torch.tensor([150, 3, 77], device="cuda")
    some = ops.delta_weight(factors[0], factors[1][rows], *factors[2:], rows=rows, **how)
    assert torch.equal(some, ops.delta_weight(*factors, **how)[rows])


@pytest.mark.parametrize("carrier", [None, Carrier(0.5, 5)])
def test_experts_are_those_of_the_plain_passes(carrier):
    given = [on_gpu(carried(inputs(size, "sinc", dtype=torch.float32), carrier)) for size in (120, 120)]
    leaves = [torch.stack([each[name] for each in given]).requires_grad_() for name in ("A", "B", "c")]
    tau = torch.tensor([0.5, 0.3], device="cuda")
    found = []
    for impl in ("triton", "eager"):
        weights = ops.experts_weight(None, *leaves, tau, 1.5, phi="sinc", carrier=carrier, impl=impl)
        direction = torch.sin(torch.arange(weights.numel(), device="cuda").float()).reshape(weights.shape)
        found.append([weights.detach(), *torch.autograd.grad((weights * direction).sum(), leaves)])
    for fast, plain in zip(*found, strict=True):
        assert rel_rms(fast, plain) <= 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_in_half_precision_keep_the_gradients_of_phi(dtype):
    given = on_gpu(carried(inputs(500, "sinc", dtype=torch.float32), Carrier(0.5, 3)))
    given |= {"x": given["x"].to(dtype), "W0": None, "bias": None, "scale": 1e-2}
    reference, fast = with_gradients(given, "definition"), with_gradients(given, "triton")
    for name in ("A", "B", "c"):
        assert rel_rms(fast[name].float(), reference[name].float()) <= 2 * torch.finfo(dtype).eps, name


def test_a_matrix_with_more_than_2_to_the_31_entries():
    free, _ = torch.cuda.mem_get_info()
    if free < 40 << 30:
        pytest.skip("needs 40 GiB of free GPU memory")
    rows, columns = 70_000, 32_768
    generator = torch.Generator("cuda").manual_seed(0)
    A = torch.randn(1, columns, device="cuda", generator=generator)
    B = torch.randn(rows, 1, device="cuda", generator=generator)
    c = torch.tensor([1.0, 0.5], device="cuda")
    how = dict(phi="linear", carrier=Carrier(0.5, 5), dtype=torch.bfloat16)
    found = ops.adapted_weight(None, A, B, c, torch.inf, 1.0, **how)[-3:].float()
    minus = is_minus(*hashes(5, torch.arange(rows - 3, rows, device="cuda"), columns, "cuda"))
    truth = torch.where(minus, 0.5, 1.5) * (B[-3:] @ A)
    assert rel_rms(found, truth) <= 4e-3


def adapted_llama(**fields):
    """A tiny decoder on the device, in bf16, whose linear layers are large enough for the kernels."""
    import peft

    model = peft.get_peft_model(
        tiny_llama().cuda().bfloat16(), LRLoraConfig(target_modules="all-linear", r=4, **fields)
    )
    for name, parameter in model.named_parameters():
        if name.endswith("B"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


FIELDS = [{}, {"carrier": "signs"}, {"phi": "linear", "carrier": "signs"}, {"tau": "auto"}, {"phi": "sine"}]


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_a_training_step_waits_for_nothing(fields):
    # a step that asks the device for a number leaves it idle while Python prepares the next layer
    model = adapted_llama(**fields).train()
    ids = torch.randint(3, 60, (2, 32), device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for number in range(3):
        torch.cuda.set_sync_debug_mode("error" if number else "default")
        try:
            # the loss of transformers reads numbers of its own
            model(input_ids=ids).logits.float().square().mean().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_a_merged_model_answers_as_the_adapted_one(fields):
    model = adapted_llama(**fields).float().eval()
    ids = torch.randint(3, 60, (2, 32), device="cuda")
    with torch.no_grad():
        before = model(input_ids=ids).logits
        merged = model.merge_and_unload()(input_ids=ids).logits
    assert rel_rms(merged, before) <= 1e-5


def test_a_layer_under_cuda_graphs_gives_the_same_bits():
    given = on_gpu(carried(inputs(200, "sinc", dtype=torch.float32), Carrier(0.5, 3)))
    given["carrier"] = given["carrier"]._replace(seed=torch.tensor(3, device="cuda"))
    given["tau"] = torch.tensor(given["tau"], device="cuda")

    def forward():
        with torch.no_grad():
            return adapted_linear(**given, impl="triton")

    truth = forward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = forward()
    graph.replay()
    assert torch.equal(found, truth)
