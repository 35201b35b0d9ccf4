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
from lrlora.ops import tiles
from lrlora.ops.tiles import Passes
from lrlora.ops.triton_kernels import LINEAR, RESIDUAL, SINC, SINE, gradient_kernel, weight_kernel

BLOCK_ROWS, BLOCK_COLUMNS, WARPS = 16, 128, 4
TILE_ENTRIES = 1 << 26
"""Entries of a tile: bounds dZ, the only buffer besides the weight, to 256 MiB."""

_FORM_NUMBER = {"sinc": SINC.value, "residual": RESIDUAL.value, "sine": SINE.value, "linear": LINEAR.value}


class Numbers(NamedTuple):
    """What the kernels compute phi and the signs from; nothing is computed before they run.

    Args:
        tau: the knee, a tensor of one entry on the device.
        scale: alpha / r, or alpha / sqrt(r).
        offset, seed: of the carrier; the seed a tensor of one entry on the device, None without a carrier.
        row_numbers: of the rows of B, where they are not 0, 1, ...
        sincs: sinc(offset - k) [K].
        first_row: of the tile that is being computed.
    """

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
    tau: Tensor | float, scale: float, phi: Form, like: Tensor, c: Tensor | None, offset: float, *signs: Tensor | None
) -> Numbers:
    """As `eager.numbers`, for these kernels: no launch, and nothing that waits for the device."""
    if isinstance(tau, Tensor):
        tau = tau.to(like.device, torch.float32)
    else:
        tau = torch.full((), tau, dtype=torch.float32, device=like.device)
    seed, row_numbers = signs
    if seed is None or c is None:
        return Numbers(tau, scale)
    return Numbers(tau, scale, offset, seed, row_numbers, _sincs_at(offset, len(c), like.device))


@functools.cache
def _sincs_at(offset: float, num_basis: int, device: torch.device) -> Tensor:
    """sinc(offset - k) for every k, copied to a device once."""
    k = torch.arange(num_basis, dtype=torch.float64) - num_basis // 2
    with torch.inference_mode(False):
        return torch.sinc(offset - k).float().to(device)


def why_not(dtype: torch.dtype) -> str | None:
    """Why these kernels cannot take factors of this precision; None where they can."""
    return None if dtype == torch.float32 else f"the Triton kernels compute in float32, got factors in {dtype}"


def write_weight(
    out: Tensor, A: Tensor, B: Tensor, W0: Tensor | None, c: Tensor | None, at: Numbers, phi: Form
) -> None:
    """As `eager.write_weight`."""
    grid, constants = _launch(out, c, phi, W0, at)
    weight_kernel[grid](out, A, B, W0, c, *_arguments(at), *out.shape, A.shape[0], **constants)


def write_weight_and_gradients(
    G: Tensor, dZ: Tensor, A: Tensor, B: Tensor, W0: Tensor | None, c: Tensor | None, at: Numbers, phi: Form
) -> Tensor | None:
    """As `eager.write_weight_and_gradients`."""
    grid, constants = _launch(G, c, phi, W0, at)
    sums = None if c is None else torch.empty(grid[0] * grid[1], len(c), dtype=torch.float32, device=G.device)
    gradient_kernel[grid](G, dZ, sums, A, B, W0, c, *_arguments(at), *G.shape, A.shape[0], **constants)
    return sums


def _arguments(at: Numbers) -> tuple[Any, ...]:
    return at.tau, at.seed, at.row_numbers, at.sincs, float(at.scale), float(at.offset), at.first_row


def _launch(matrix: Tensor, c: Tensor | None, phi: Form, W0: Tensor | None, at: Numbers) -> tuple[Any, dict[str, Any]]:
    rows, columns = matrix.shape
    grid = (triton.cdiv(rows, BLOCK_ROWS), triton.cdiv(columns, BLOCK_COLUMNS))
    constants = dict(FORM=_FORM_NUMBER[phi], HALF=0 if c is None or phi == "linear" else len(c) // 2)
    constants |= dict(HAS_W0=W0 is not None, IS_CARRIED=at.seed is not None, HAS_NUMBERS=at.row_numbers is not None)
    return grid, constants | dict(ROWS=BLOCK_ROWS, COLUMNS=BLOCK_COLUMNS, num_warps=WARPS)


PASSES = Passes(write_weight, write_weight_and_gradients, TILE_ENTRIES)


def weight(W0, A, B, c, at, phi, dtype) -> Tensor:
    """As `tiles.weight`."""
    W0 = None if W0 is None else W0.contiguous()
    return tiles.weight(PASSES, W0, A.contiguous(), B.contiguous(), c, at, phi, dtype)


def gradients(G, W0, A, B, c, at, phi) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `tiles.gradients`."""
    W0 = None if W0 is None else W0.contiguous()
    return tiles.gradients(PASSES, G, W0, A.contiguous(), B.contiguous(), c, at, phi)
