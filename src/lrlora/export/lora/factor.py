"""The best factors of a given rank: a truncated singular value decomposition, randomised where that is much cheaper."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

OVERSAMPLING = 10
POWER_STEPS = 4
CHEAP_BELOW = 8
"""A randomised decomposition is tried where (rank + OVERSAMPLING) * CHEAP_BELOW is within the smaller side."""

ACCEPTED_LOSS = 0.01
"""Fraction of the squared error that one more power step may still take away."""

ROUNDINGS = 16
"""So many roundings of the squared norm hide what a randomised decomposition leaves out."""

DOUBLE_UP_TO = 1024


@dataclass(frozen=True)
class Factors:
    """B A close to dW.

    Args:
        A: [r, in].
        B: [out, r].
        error: ||dW - B A||_F, of the factors as they are.
        norm: ||dW||_F.
        is_randomised: whether the cheap decomposition was good enough.
    """

    A: Tensor
    B: Tensor
    error: float
    norm: float
    is_randomised: bool = False

    @property
    def relative_error(self) -> float:
        """||dW - B A||_F / ||dW||_F; 0 where dW is zero."""
        return self.error / self.norm if self.norm else 0.0


def factorise(dW: Tensor, rank: int) -> Factors:
    """The truncated singular value decomposition of dW, as B = U sqrt(S) and A = sqrt(S) V^T, float32.

    Args:
        dW: [out, in].
        rank: at least 1; above min(out, in) the factors are padded with zeros.

    Example:
        >>> round(factorise(torch.diag(torch.tensor([2.0, 1.0])), 1).error, 5)
        1.0
    """
    kept = min(rank, *dW.shape)
    found = _randomised(dW, kept) if (kept + OVERSAMPLING) * CHEAP_BELOW <= min(dW.shape) else None
    U, S, Vh = found or _exact(dW, kept)
    root = S.sqrt()
    B, A = dW.new_zeros(dW.shape[0], rank), dW.new_zeros(rank, dW.shape[1])
    B[:, :kept], A[:kept] = U * root, root[:, None] * Vh
    norm = torch.linalg.vector_norm(dW, dtype=torch.float64).item()
    error = torch.linalg.vector_norm(dW - B @ A, dtype=torch.float64).item()
    return Factors(A, B, error, norm, found is not None)


def _exact(dW: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    matrix = dW.double() if min(dW.shape) <= DOUBLE_UP_TO else dW
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, :rank], S[:rank], Vh[:rank]


def _randomised(dW: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """The decomposition by random projection; None where it is not good enough.

    Its squared error is ||dW||_F^2 - ||S||^2. One more half step of power iteration, dW V, shows by how much that would
    still fall: where it is more than a hundredth, the decomposition has not converged.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        U, S, V = torch.svd_lowrank(dW, q=rank + OVERSAMPLING, niter=POWER_STEPS)
    U, S, Vh = U[:, :rank], S[:rank], V[:, :rank].T
    kept = (S.double() ** 2).sum()
    whole = torch.linalg.vector_norm(dW, dtype=torch.float64) ** 2
    error = whole - kept
    # the singular values come in the precision of dW: a smaller error than that is noise, and so is its check
    if error <= ROUNDINGS * torch.finfo(dW.dtype).eps * whole:
        return None
    gain = (torch.linalg.svdvals(dW @ Vh.T).double() ** 2).sum() - kept
    return (U, S, Vh) if gain <= ACCEPTED_LOSS * error else None
