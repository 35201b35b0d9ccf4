"""Layers that reach over the whole grid of phi, with a carrier and without."""

import torch

from lrlora.method.carrier import Carrier, starting_coefficients
from lrlora.method.nonlinearity import FORMS, initial_coefficients
from lrlora.ops import adapted_linear

CARRIERS = [None, Carrier(0.5, seed=3)]

KINDS = [(phi, carrier) for phi in FORMS for carrier in CARRIERS if phi != "sine" or carrier is None]


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


def carried(given: dict, carrier: Carrier | None) -> dict:
    """The same layer with a carrier, half open; entries then lie on grid points and between them."""
    if carrier is None:
        return given
    c = starting_coefficients(len(given["c"]), given["phi"], carrier.offset, "half").to(given["c"])
    return {**given, "c": c + 0.1 * torch.sin(torch.arange(len(c))).to(c), "carrier": carrier}


def with_gradients(given: dict, impl: str, padding: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    """Output and gradients of the inputs that are trained, for one random direction of the output.

    padding: tokens at the end of each sequence whose output reaches no loss.
    """
    leaves = {k: given[k].clone().requires_grad_() for k in ("x", "A", "B", "c", "bias") if given[k] is not None}
    y = adapted_linear(**{**given, **leaves}, impl=impl)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)
    for sequence, tokens in zip(direction, padding, strict=False):
        sequence[len(sequence) - tokens :] = 0
    gradients = torch.autograd.grad((y * direction).sum(), list(leaves.values()))
    return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}
