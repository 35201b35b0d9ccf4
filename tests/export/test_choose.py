import itertools

import pytest
import torch

from lrlora import InputError
from lrlora.export.lora.choose import (
    UNIFORM_RANKS,
    RankChoice,
    choose_ranks,
    ranks_by_budget,
    ranks_by_energy,
    total_error,
    uniform_rank,
)
from lrlora.export.lora.factor import decompose, decompose_product, factorise
from lrlora.export.lora.names import pattern_keys, target_modules
from lrlora.method.rank import singular_values
from lrlora.tuner.internals import get_pattern_key


def spectra(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(n, generator=generator, dtype=torch.float64).sort(descending=True).values for n in lengths]


def left_out(found: list[torch.Tensor], ranks: list[int]) -> float:
    return sum((sigma[rank:] ** 2).sum().item() for sigma, rank in zip(found, ranks, strict=True))


@pytest.mark.parametrize("energy", [0.1, 0.5, 0.9, 0.99, 1.0])
def test_energy_gives_the_smallest_rank_that_keeps_it(energy):
    for sigma in spectra(1, 5, 40):
        [rank] = ranks_by_energy([sigma], energy)
        share = (sigma**2).cumsum(0) / (sigma**2).sum()
        assert share[rank - 1] >= energy - 1e-12
        assert rank == 1 or share[rank - 2] < energy


def test_energy_1_keeps_what_is_above_rounding_and_nothing_is_rank_1():
    sigma = torch.tensor([1.0, 1e-3, 1e-6, 1e-9, 1e-12], dtype=torch.float64)
    assert ranks_by_energy([sigma, torch.zeros(4)], 1.0) == [3, 1]


def best_by_trying(found, costs, budget) -> float:
    choices = itertools.product(*(range(1, len(sigma) + 1) for sigma in found))
    paid = (ranks for ranks in choices if sum(r * c for r, c in zip(ranks, costs, strict=True)) <= budget)
    return min(left_out(found, list(ranks)) for ranks in paid)


@pytest.mark.parametrize("budget", range(30, 150, 7))
def test_a_budget_is_spent_best_where_all_costs_are_equal(budget):
    found = spectra(4, 5, 6)
    ranks = ranks_by_budget(found, [10, 10, 10], budget)
    assert sum(ranks) * 10 <= budget
    assert left_out(found, ranks) == pytest.approx(best_by_trying(found, [10] * 3, budget), abs=1e-12)


@pytest.mark.parametrize("budget", range(37, 150, 7))
def test_a_budget_is_spent_within_one_item_of_the_best_otherwise(budget):
    found, costs = spectra(4, 5, 6), [7, 11, 19]
    ranks = ranks_by_budget(found, costs, budget)
    assert sum(r * c for r, c in zip(ranks, costs, strict=True)) <= budget
    one_item = max((sigma[1:] ** 2).max().item() for sigma in found)
    assert left_out(found, ranks) <= best_by_trying(found, costs, budget) + one_item


def test_uniform_is_one_rank_that_servers_take():
    found = spectra(40, 40)
    wanted = ranks_by_energy(found, 0.9)
    assert wanted[0] > 8
    [rank, other] = choose_ranks(RankChoice(energy=0.9, uniform=True), found, [(40, 50), (40, 60)])
    assert rank == other == min(r for r in UNIFORM_RANKS if r >= max(wanted))
    assert choose_ranks(RankChoice(budget=190 * 16, uniform=True), [], [(40, 50), (40, 60)]) == [16, 16]
    with pytest.raises(InputError, match="budget must be at least 1520"):
        choose_ranks(RankChoice(budget=1519, uniform=True), [], [(40, 50), (40, 60)])
    with pytest.raises(InputError, match="uniform needs rank 513"):
        uniform_rank(513)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"energy": 0.9, "rank": 4}, "got --energy and --rank, needed one"),
        ({"rank": 4, "budget": 4}, "got --rank and --budget"),
        ({"energy": 0.0}, r"energy must be in \(0, 1\]"),
        ({"energy": 1.01}, r"energy must be in \(0, 1\]"),
        ({"energy": float("nan")}, r"energy must be in \(0, 1\]"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"budget": -1}, "budget must be at least 1"),
    ],
)
def test_what_cannot_be_chosen(fields, word):
    with pytest.raises(InputError, match=word):
        RankChoice(**fields)


def test_total_error_is_that_of_the_block_diagonal_matrix():
    a, b = torch.randn(4, 5), torch.randn(6, 3)
    whole = torch.block_diag(a, b)
    errors = [factorise(a, 2), factorise(b, 1)]
    made = torch.block_diag(*(f.B @ f.A for f in errors))
    wanted = ((whole - made).norm() / whole.norm()).item()
    assert total_error([f.error for f in errors], [f.norm for f in errors]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (63, 100), (300, 40)])
@pytest.mark.parametrize("rank", [1, 5, 400])
def test_factors_are_the_best_of_their_rank(shape, rank):
    dW = torch.randn(shape)
    made = factorise(dW, rank)
    assert (made.A.shape, made.B.shape) == ((rank, shape[1]), (shape[0], rank))
    optimum = (singular_values(dW)[rank:] ** 2).sum().sqrt().item()
    assert made.error == pytest.approx(optimum, rel=1e-4, abs=2e-6 * made.norm)


@pytest.mark.parametrize("shape", [(1, 1), (63, 100), (300, 40)])
def test_a_decomposition_can_be_cut_at_any_rank(shape):
    B, A = torch.randn(shape[0], 9), torch.randn(9, shape[1])
    dW = B @ A
    for made in (decompose(dW), decompose_product(B, A)):
        sigma = singular_values(dW)
        assert len(made.sigma) == min(9, *shape)
        torch.testing.assert_close(made.sigma, sigma[: len(made.sigma)].double(), rtol=1e-4, atol=1e-5)
        for rank in range(1, len(made.sigma) + 1):
            factors = made.factors(rank, dW)
            assert (factors.A.shape, factors.B.shape) == ((rank, shape[1]), (shape[0], rank))
            optimum = (sigma[rank:] ** 2).sum().sqrt().item()
            assert factors.error == pytest.approx(optimum, rel=1e-4, abs=2e-6 * factors.norm)


def _with_spectrum(sigma: torch.Tensor) -> torch.Tensor:
    n = len(sigma)
    U, V = (torch.linalg.qr(torch.randn(n, n)).Q for _ in range(2))
    return U @ torch.diag(sigma) @ V


def test_the_cheap_decomposition_is_taken_where_it_is_as_good_only():
    for dW in (_with_spectrum(torch.logspace(0, -4, 400)), torch.randn(400, 500)):
        made = factorise(dW, 10)
        optimum = (singular_values(dW)[10:] ** 2).sum().sqrt().item()
        assert made.is_randomised
        assert made.error <= optimum * 1.01
    # below the rounding of the squared norms the check cannot see, and does not trust
    steep = _with_spectrum(torch.logspace(0, -80, 400))
    made = factorise(steep, 30)
    assert not made.is_randomised
    assert made.relative_error < 1e-6


def test_zero_stays_zero():
    made = factorise(torch.zeros(5, 4), 1)
    assert (made.error, made.relative_error) == (0.0, 0.0)
    assert made.A.shape == (1, 4) and not made.A.any() and not made.B.any()


NAMES = [
    ["model.layers.1.q", "model.layers.11.q", "model.layers.1.k"],
    ["query", "a.query", "a.b.query"],
    ["layers.1.q", "layersX1.q", "encoder.layers.1.q", "layers.10.q"],
    ["h.0.attn.c_attn", "crossh.0.attn.c_attn", "x.h.0.attn.c_attn"],
]


@pytest.mark.parametrize("names", NAMES)
def test_every_key_of_a_pattern_matches_its_own_module_alone(names):
    keys = pattern_keys(names)
    for name, key in zip(names, keys, strict=True):
        assert get_pattern_key(keys, name) == key
        assert get_pattern_key(keys[::-1], name) == key


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_target_modules_choose_these_and_no_others(names, count):
    import peft

    class Tree(torch.nn.Module):
        pass

    model = Tree()
    for name in names:
        parent, parts = model, name.split(".")
        for part in parts[:-1]:
            if not hasattr(parent, part):
                parent.add_module(part, Tree())
            parent = getattr(parent, part)
        parent.add_module(parts[-1], torch.nn.Linear(3, 3))
    modules = [name for name, _ in model.named_modules() if name]
    chosen = target_modules(names[:count], modules)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=chosen))
    found = {n.removeprefix("base_model.model.") for n, m in adapted.named_modules() if hasattr(m, "lora_A")}
    assert found == set(names[:count])
