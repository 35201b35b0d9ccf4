"""How much rank each layer gets: by energy, by one rank for all, or by a budget of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrlora.errors import InputError

UNIFORM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for max_lora_rank."""

ROUNDING = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class RankChoice:
    """How the ranks are chosen; at most one of the first three.

    Args:
        energy: fraction of ||dW||_F^2 that every layer keeps, in (0, 1]; 1 keeps all that is above float32's rounding.
            0.99 where nothing is given.
        rank: the same rank for all layers, at least 1; less where a layer has fewer singular values.
        budget: parameters of all layers together, spent where they reduce the error most.
        uniform: one rank for all layers out of UNIFORM_RANKS, as servers need it: the smallest that is at least the
            rank chosen for every layer, or with a budget the largest that the budget allows.

    Raises:
        InputError: two of the three, or a value outside its range.
    """

    energy: float | None = None
    rank: int | None = None
    budget: int | None = None
    uniform: bool = False

    def __post_init__(self) -> None:
        given = [name for name in ("energy", "rank", "budget") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"got {' and '.join('--' + name for name in given)}, needed one of them at most")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise InputError(
                f"energy must be in (0, 1], a fraction of ||dW||^2, got {self.energy}; pass 0.99, for example"
            )
        for name in ("rank", "budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")

    @property
    def needs_spectra(self) -> bool:
        """Whether the ranks depend on the singular values."""
        return self.rank is None and not (self.uniform and self.budget is not None)


def ranks_by_energy(spectra: Sequence[Tensor], energy: float) -> list[int]:
    """The smallest rank of each layer that keeps a fraction of its ||dW||_F^2; 1 where dW is zero.

    Args:
        spectra: the singular values of each layer, falling, float64.
        energy: the fraction, in (0, 1]. 1: what is left out is below ||dW||_F times the rounding of float32.

    Example:
        >>> ranks_by_energy([torch.tensor([3.0, 1.0, 0.0])], 0.9)
        [1]
    """
    allowed = max(1 - energy, ROUNDING**2)
    ranks = []
    for sigma in spectra:
        squares = sigma.double() ** 2
        # tail[k] is what rank k leaves out, summed from the smallest so as not to round any away
        tail = torch.cat([squares.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)])
        fits = (tail <= allowed * tail[0] * (1 + 1e-12)).nonzero()[0].item()
        ranks.append(max(1, int(fits)))
    return ranks


def ranks_by_budget(spectra: Sequence[Tensor], costs: Sequence[int], budget: int) -> list[int]:
    """The ranks that leave the least total error for a number of parameters.

    Layer l at rank k costs k cost_l parameters and leaves the error sum_{i > k} sigma_{l,i}^2 (Eckart-Young); the
    errors of different layers add up. So each singular value is an item of value sigma^2 and weight cost, to be chosen
    for a knapsack: every layer gets its first, then items are taken by sigma^2 / cost, falling, as far as they fit.
    Within a layer the order is that of its singular values: a choice is always a rank. Where all costs are
    equal this is the optimum. Otherwise the optimum of the fractional knapsack bounds it: the total squared error is
    at most that optimum plus sigma^2 of one item, the first that did not fit. What is optimal is the error of the
    weights, not that of the task.

    Args:
        spectra: the singular values of each layer, falling.
        costs: out + in of each layer.
        budget: parameters to spend, at least sum(costs).

    Raises:
        InputError: a budget that does not pay rank 1 in every layer.

    Example:
        >>> ranks_by_budget([torch.tensor([3.0, 2.0]), torch.tensor([1.0, 0.5])], [10, 10], 30)
        [2, 1]
    """
    left = budget - sum(costs)
    if left < 0:
        raise InputError(
            f"budget must be at least {sum(costs)}, which is rank 1 in all {len(costs)} layers, got {budget}"
        )
    ranks = [1] * len(costs)
    for number in by_worth(spectra, costs):
        if costs[number] <= left:
            ranks[number] += 1
            left -= costs[number]
    return ranks


def by_worth(spectra: Sequence[Tensor], costs: Sequence[int]) -> list[int]:
    """The layers of all singular values but the first of each and those that are 0, by sigma^2 / cost, falling.

    Example:
        >>> by_worth([torch.tensor([3.0, 2.0]), torch.tensor([4.0, 2.5, 0.0])], [10, 10])
        [1, 0]
    """
    items = [
        (value / cost, number)
        for number, (sigma, cost) in enumerate(zip(spectra, costs, strict=True))
        for value in (sigma.double() ** 2).tolist()[1:]
    ]
    return [number for gain, number in sorted(items, key=lambda item: -item[0]) if gain > 0]


def uniform_rank(needed: int) -> int:
    """The smallest rank of UNIFORM_RANKS that is at least `needed`.

    Raises:
        InputError: none is.

    Example:
        >>> uniform_rank(17)
        32
    """
    for rank in UNIFORM_RANKS:
        if rank >= needed:
            return rank
    raise InputError(
        f"uniform needs rank {needed}, servers take {UNIFORM_RANKS[-1]} at most; pass a lower --energy, --rank or "
        "--budget, or merge"
    )


def uniform_rank_for(costs: Sequence[int], budget: int) -> int:
    """The largest rank of UNIFORM_RANKS that a budget pays in all layers.

    Raises:
        InputError: not even the smallest.
    """
    paid = [rank for rank in UNIFORM_RANKS if rank * sum(costs) <= budget]
    if not paid:
        least = UNIFORM_RANKS[0] * sum(costs)
        raise InputError(f"budget must be at least {least}, rank {UNIFORM_RANKS[0]} in all layers, got {budget}")
    return paid[-1]


def choose_ranks(choice: RankChoice, spectra: Sequence[Tensor], shapes: Sequence[tuple[int, int]]) -> list[int]:
    """The rank of every layer.

    Args:
        choice: how.
        spectra: the singular values of each layer; not looked at unless `choice.needs_spectra`.
        shapes: (out, in) of each layer.

    Raises:
        InputError: a budget too small, or a uniform rank too large.
    """
    costs = [sum(shape) for shape in shapes]
    if choice.budget is not None and choice.uniform:
        return [uniform_rank_for(costs, choice.budget)] * len(shapes)
    if choice.rank is not None:
        ranks = [min(choice.rank, *shape) for shape in shapes]
    elif choice.budget is not None:
        ranks = ranks_by_budget(spectra, costs, choice.budget)
    else:
        ranks = ranks_by_energy(spectra, 0.99 if choice.energy is None else choice.energy)
    return [uniform_rank(max(ranks))] * len(ranks) if choice.uniform else ranks


def total_error(errors: Sequence[float], norms: Sequence[float]) -> float:
    """sqrt(sum of squared errors) / sqrt(sum ||dW||^2); 0 where every dW is zero.

    Example:
        >>> total_error([3.0, 4.0], [6.0, 8.0])
        0.5
    """
    norm = math.hypot(*norms)
    return math.hypot(*errors) / norm if norm else 0.0
