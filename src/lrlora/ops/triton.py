"""The passes on a CUDA device: what the two kernels of `triton_kernels` are given, and how they are launched."""

# pyright: reportCallIssue=false, reportIndexIssue=false
# a jit object is called with other arguments than its function has

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from lrlora.method.carrier import Carrier
from lrlora.method.nonlinearity import Form
from lrlora.method.update import at_least_float32
from lrlora.ops.passes import Factors, Passes
from lrlora.ops.tiles import in_tiles
from lrlora.ops.triton_kernels import LINEAR, RESIDUAL, SINC, SINE, gradient_kernel, weight_kernel

BLOCK_ROWS, BLOCK_COLUMNS, WARPS = 16, 128, 4
_FORM_NUMBER = {"sinc": SINC.value, "residual": RESIDUAL.value, "sine": SINE.value, "linear": LINEAR.value}


class Numbers(NamedTuple):
    """What the kernels compute phi and the signs from; nothing is computed before they run.

    Args:
        form: which f.
        c: coefficients [K]; None for form "sine".
        tau: the knee, a tensor of one entry on the device.
        scale: alpha / r, or alpha / sqrt(r).
        offset, seed: of the carrier; the seed a tensor of one entry on the device, None without a carrier.
        row_numbers: of the rows of B, where they are not 0, 1, ...
        sincs: sinc(offset - k) [K].
        first_row: of the tile that is being computed.
    """

    form: Form
    c: Tensor | None
    tau: Tensor
    scale: float
    offset: float = 0.0
    seed: Tensor | None = None
    row_numbers: Tensor | None = None
    sincs: Tensor | None = None
    first_row: int = 0

    def of_rows(self, rows: slice) -> Numbers:
        """The same for a tile of rows of the matrix."""
        if self.row_numbers is not None:
            return self._replace(row_numbers=self.row_numbers[rows])
        return self._replace(first_row=rows.start)


def signs(carrier: Carrier, A: Tensor, B: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The seed on the device, and the numbers of the rows of B if they are not 0, 1, ..."""
    seed = carrier.seed
    seed = seed.to(A.device) if isinstance(seed, Tensor) else torch.full((), seed, device=A.device)
    return seed, rows


def numbers(
    c: Tensor | None, tau: Tensor | float, scale: float, phi: Form, like: Tensor, offset: float, *signs: Tensor | None
) -> Numbers:
    """As `eager.numbers`, for these kernels: no launch, and nothing that waits for the device."""
    if isinstance(tau, Tensor):
        tau = tau.to(like.device, torch.float32)
    else:
        tau = torch.full((), tau, dtype=torch.float32, device=like.device)
    seed, row_numbers = signs
    if seed is None or c is None:
        return Numbers(phi, c, tau, scale)
    return Numbers(phi, c, tau, scale, offset, seed, row_numbers, _sincs_at(offset, len(c), like.device))


@functools.cache
def _sincs_at(offset: float, num_basis: int, device: torch.device) -> Tensor:
    """sinc(offset - k) for every k, copied to a device once."""
    k = torch.arange(num_basis, dtype=torch.float64) - num_basis // 2
    with torch.inference_mode(False):
        return torch.sinc(offset - k).float().to(device)


def why_not(A: Tensor) -> str | None:
    """Why these kernels cannot take factors of A's precision; None where they can."""
    dtype = at_least_float32(A).dtype
    return None if dtype == torch.float32 else f"the Triton kernels compute in float32, got factors in {dtype}"


def write_weight(out: Tensor, W0: Tensor | None, factors: Factors) -> None:
    """As `eager.write_weight`."""
    arguments, grid, constants = _launch(out, W0, factors)
    weight_kernel[grid](out, *arguments, **constants)


def write_weight_and_gradients(G: Tensor, dZ: Tensor, W0: Tensor | None, factors: Factors) -> Tensor | None:
    """As `eager.write_weight_and_gradients`."""
    arguments, grid, constants = _launch(G, W0, factors)
    c = factors.phi.c
    sums = None if c is None else torch.empty(grid[0] * grid[1], len(c), dtype=torch.float32, device=G.device)
    gradient_kernel[grid](G, dZ, sums, *arguments, **constants)
    return sums


def _launch(matrix: Tensor, W0: Tensor | None, factors: Factors) -> tuple[tuple[Any, ...], Any, dict[str, Any]]:
    """Arguments of both kernels after what they write, the grid, and their constants."""
    # the kernels read them by their shape alone
    A, B, W0 = factors.A.contiguous(), factors.B.contiguous(), None if W0 is None else W0.contiguous()
    at: Numbers = factors.phi
    numbers = at.tau, at.seed, at.row_numbers, at.sincs, float(at.scale), float(at.offset), at.first_row
    rows, columns = matrix.shape
    grid = (triton.cdiv(rows, BLOCK_ROWS), triton.cdiv(columns, BLOCK_COLUMNS))
    half = 0 if at.c is None or at.form == "linear" else len(at.c) // 2
    constants = dict(FORM=_FORM_NUMBER[at.form], HALF=half, HAS_W0=W0 is not None)
    constants |= dict(IS_CARRIED=at.seed is not None, HAS_NUMBERS=at.row_numbers is not None)
    constants |= dict(ROWS=BLOCK_ROWS, COLUMNS=BLOCK_COLUMNS, num_warps=WARPS)
    return (A, B, W0, at.c, *numbers, rows, columns, A.shape[0]), grid, constants


def of_tiles(entries: int) -> Passes:
    """These passes, with tiles of at most so many entries."""
    return in_tiles("triton", why_not, signs, numbers, write_weight, write_weight_and_gradients, entries)


# bounds dZ, the only buffer besides the weight, to 256 MiB
PASSES = of_tiles(1 << 26)
