"""Ranks of an update: stable, effective and numerical, from its singular values.

Small matrices get an exact singular value decomposition. Where that is costly, ||M||_2 comes from Lanczos
bidiagonalisation (a few dozen products with M) and the whole spectrum from the eigenvalues of the smaller Gram matrix
in float64, whose singular values are exact down to about 1e-8 of the largest: below every tolerance used here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lrlora.method.update import at_least_float32, check_factors

if TYPE_CHECKING:
    from jaxtyping import Float

EXACT_UP_TO = 256
"""Matrices whose smaller side is at most this get a full singular value decomposition."""


def stable_rank(M: Float[Tensor, "out in"], tolerance: float = 1e-7, exact_up_to: int = EXACT_UP_TO) -> float:
    """SR(M) = ||M||_F^2 / ||M||_2^2, a continuous proxy for the rank, in [1, min(out, in)]; 0 for a zero matrix.

    Args:
        M: the matrix.
        tolerance: of Lanczos steps, as for `spectral_norm`.
        exact_up_to: smaller side up to which ||M||_2 comes from a decomposition, and not from Lanczos steps.

    Raises:
        ValueError: M is not a matrix or holds NaN or inf.

    Example:
        >>> round(stable_rank(torch.diag(torch.tensor([1.0, 1.0, 0.0]))), 6)
        2.0
    """
    M = _checked(M)
    norm = spectral_norm(M, tolerance, exact_up_to=exact_up_to)
    frobenius = torch.linalg.vector_norm(M, dtype=torch.float64).item()
    # rounding may leave the quotient a hair below its bound
    return 0.0 if norm == 0 else max(1.0, (frobenius / norm) ** 2)


def effective_rank(sigma: Float[Tensor, " n"]) -> float:
    """exp(-sum_i p_i log p_i) with p = sigma / sum sigma: the rank by entropy (Roy and Vetterli, 2007).

    Args:
        sigma: singular values, as `singular_values` returns them.

    Returns:
        A number in [1, n]; 0 where all of sigma is 0.

    Example:
        >>> round(effective_rank(torch.ones(4)), 6)
        4.0
    """
    total = sigma.sum()
    if total == 0:
        return 0.0
    p = sigma / total
    return torch.special.entr(p).sum().exp().item()


def numerical_rank(sigma: Float[Tensor, " n"], tolerance: float = 1e-3) -> int:
    """How many singular values exceed `tolerance` times the largest.

    Example:
        >>> numerical_rank(torch.tensor([1.0, 0.5, 1e-6]))
        2
    """
    return int((sigma > tolerance * sigma.max()).sum()) if sigma.numel() else 0


def constant_share(M: Float[Tensor, "out in"]) -> float:
    """Fraction of ||M||_F^2 in the constant matrix of M's mean, in [0, 1]: what a non-zero phi(0) would add.

    Example:
        >>> constant_share(torch.ones(2, 3))
        1.0
    """
    M = _checked(M).double()
    energy = (M * M).sum().item()
    return 0.0 if energy == 0 else M.mean().item() ** 2 * M.numel() / energy


def singular_values(M: Float[Tensor, "out in"]) -> Float[Tensor, " n"]:
    """All min(out, in) singular values of M, float64, falling.

    Raises:
        ValueError: M is not a matrix or holds NaN or inf.
    """
    M = _checked(M).double()
    if min(M.shape) <= EXACT_UP_TO:
        return torch.linalg.svdvals(M)
    gram = M @ M.T if M.shape[0] <= M.shape[1] else M.T @ M
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(0)


def product_singular_values(A: Float[Tensor, "r in"], B: Float[Tensor, "out r"]) -> Float[Tensor, " n"]:
    """The singular values of B A (the others are 0), float64, falling, from r x r matrices only."""
    check_factors(A, B)
    left = torch.linalg.qr(B.double(), mode="r").R
    right = torch.linalg.qr(A.double().T, mode="r").R
    return torch.linalg.svdvals(left @ right.T)


def product_rms(A: Float[Tensor, "*experts r in"], B: Float[Tensor, "*experts out r"]) -> Float[Tensor, "*experts"]:
    """RMS of the entries of B A, sqrt(sum((A A^T) * (B^T B)) / (out in)), without forming B A; float32 or float64.

    Of a stack of factors, the RMS of every product in it.
    """
    A, B = at_least_float32(A), at_least_float32(B)
    energy = ((A @ A.mT) * (B.mT @ B)).sum((-2, -1)).clamp(min=0)
    return (energy / (B.shape[-2] * A.shape[-1])).sqrt()


def spectral_norm(
    M: Float[Tensor, "out in"], tolerance: float = 1e-7, max_steps: int = 200, exact_up_to: int = EXACT_UP_TO
) -> float:
    """||M||_2: exact where the smaller side is at most `exact_up_to`, else by Lanczos bidiagonalisation.

    The Lanczos value never exceeds ||M||_2. It stops when two steps in a row change it by less than `tolerance` of
    itself.
    """
    if min(M.shape) <= exact_up_to:
        return torch.linalg.matrix_norm(M.double(), ord=2).item()
    M = M if M.element_size() == 8 else M.float()
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(M.shape[1], generator=generator).to(M)
    right, left = [v / v.norm()], []
    alphas, betas, norm, quiet = [], [], 0.0, 0
    for _ in range(min(max_steps, *M.shape)):
        u = M @ right[-1]
        if left:
            u = u - betas[-1] * left[-1]
        u = _orthogonalised(u, left)
        alphas.append(u.norm().item())
        if alphas[-1] == 0:
            return norm
        left.append(u / alphas[-1])
        v = _orthogonalised(M.T @ left[-1] - alphas[-1] * right[-1], right)
        betas.append(v.norm().item())
        small = torch.diag(torch.tensor(alphas, dtype=torch.float64))
        small += torch.diag(torch.tensor(betas[:-1], dtype=torch.float64), 1)
        new = torch.linalg.matrix_norm(small, ord=2).item()
        quiet = quiet + 1 if abs(new - norm) <= tolerance * new else 0
        norm = new
        if quiet == 2 or betas[-1] <= 1e-12 * norm:
            return norm
        right.append(v / betas[-1])
    return norm


def _orthogonalised(vector: Tensor, basis: list[Tensor]) -> Tensor:
    if not basis:
        return vector
    matrix = torch.stack(basis)
    for _ in range(2):
        vector = vector - matrix.T @ (matrix @ vector)
    return vector


def _checked(M: Tensor) -> Tensor:
    if M.ndim != 2:
        raise ValueError(f"a rank needs a matrix [out, in], got shape {tuple(M.shape)}")
    M = at_least_float32(M.detach())
    if not torch.isfinite(M).all():
        raise ValueError(
            f"the matrix {tuple(M.shape)} holds NaN or inf: its rank is undefined; look at the training loss"
        )
    return M
