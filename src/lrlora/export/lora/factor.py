"""The best factors of a given rank: a truncated singular value decomposition, randomised where that is much cheaper."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrlora.export.lora.choose import ranks_by_energy

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


@dataclass(frozen=True)
class Decomposition:
    """All of the singular value decomposition that is above the rounding of float32, to be cut at any rank.

    Args:
        A: sqrt(S) V^T, [n, in], float32.
        B: U sqrt(S), [out, n], float32.
        sigma: S [n], falling, float64; n is at least 1.
    """

    A: Tensor
    B: Tensor
    sigma: Tensor

    def cut(self, rank: int) -> tuple[Tensor, Tensor]:
        """A [rank, in] and B [out, rank] of the best approximation of a rank in [1, n]."""
        return self.A[:rank], self.B[:, :rank]

    def factors(self, rank: int, dW: Tensor) -> Factors:
        """The cut, with its error as it is against dW [out, in]."""
        A, B = (part.contiguous() for part in self.cut(rank))
        norm = torch.linalg.vector_norm(dW, dtype=torch.float64).item()
        return Factors(A, B, torch.linalg.vector_norm(dW - B @ A, dtype=torch.float64).item(), norm)


def decompose(dW: Tensor) -> Decomposition:
    """The decomposition of dW [out, in], which is finite.

    Example:
        >>> decompose(torch.diag(torch.tensor([2.0, 1.0, 0.0]))).sigma.tolist()
        [2.0, 1.0]
    """
    return _above_rounding(*_exact(dW, min(dW.shape)))


def decompose_product(B: Tensor, A: Tensor) -> Decomposition:
    """The decomposition of B A, through matrices of its rank: B = Q R, A^T = P T, and that of R T^T.

    Args:
        B: [out, r], finite.
        A: [r, in], finite.
    """
    Q, R = torch.linalg.qr(B.double())
    P, T = torch.linalg.qr(A.double().T)
    U, S, Vh = torch.linalg.svd(R @ T.T, full_matrices=False)
    return _above_rounding(Q @ U, S, Vh @ P.T)


def _above_rounding(U: Tensor, S: Tensor, Vh: Tensor) -> Decomposition:
    S = S.double()
    kept = ranks_by_energy([S], 1.0)[0]
    root = S[:kept].sqrt()
    return Decomposition((root[:, None] * Vh[:kept]).float(), (U[:, :kept] * root).float(), S[:kept])


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
