"""The same passes as two Triton kernels, for CUDA: B A, phi and its gradients in registers, one trip through memory.

B A is computed inside, in float32, whatever precision the user allows torch's own products. The sums for dL/dc are
written per block and added afterwards, so that the result does not depend on the order in which blocks finish.
"""

# pyright: reportGeneralTypeIssues=false, reportCallIssue=false
# kernels are no ordinary Python: a jit object is called with other arguments than its function has

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lrlora.method import fast
from lrlora.method.fast import Knee
from lrlora.method.nonlinearity import Form
from lrlora.ops import tiles
from lrlora.ops.tiles import Passes

BLOCK_ROWS, BLOCK_COLUMNS = 16, 128
TILE_ENTRIES = 1 << 26
"""Entries of a tile: bounds dZ, the one buffer beside the weight, to 256 MiB."""

_FORM_NUMBER = {"sinc": 0, "residual": 0, "sine": 1}
_TINY = tl.constexpr(fast.TINY)
# one name per coefficient: the interpreter and the compiler of Triton disagree about tuples of constants
_A0, _A1, _A2, _A3, _A4, _A5, _A6 = (tl.constexpr(a) for a in fast.SINC_SERIES[torch.float32])


@triton.jit
def _horner(x, a0, a1, a2, a3, a4, a5, a6):
    return a0 + x * (a1 + x * (a2 + x * (a3 + x * (a4 + x * (a5 + x * a6)))))


@triton.jit
def _sinc(g):
    return _horner(g * g, _A0, _A1, _A2, _A3, _A4, _A5, _A6)


@triton.jit
def _cosine(g):
    return _horner(g * g, _A0, 3.0 * _A1, 5.0 * _A2, 7.0 * _A3, 9.0 * _A4, 11.0 * _A5, 13.0 * _A6)


@triton.jit
def _sinc_slope(g):
    return 2.0 * g * _horner(g * g, _A1, 2.0 * _A2, 3.0 * _A3, 4.0 * _A4, 5.0 * _A5, 6.0 * _A6, 0.0)


@triton.jit
def _product(A, B, row, column, rows, columns, rank):
    """Z = B A of one block, as a sum of `rank` outer products in float32."""
    Z = tl.zeros((row.shape[0], column.shape[0]), dtype=tl.float32)
    for n in range(rank):
        b = tl.load(B + row * rank + n, mask=row < rows, other=0.0)
        a = tl.load(A + n * columns + column, mask=column < columns, other=0.0)
        Z += b.to(tl.float32)[:, None] * a.to(tl.float32)[None, :]
    return Z


@triton.jit
def _cell(u):
    """The nearest whole number j, g = u - j, and (-1)^j; from 2^22 on, u + 1/2 would not be exact."""
    j = tl.where(tl.abs(u) < 4194304.0, tl.floor(u + 0.5), tl.floor(u))
    return j, u - j, 1.0 - 2.0 * (j - 2.0 * tl.floor(j * 0.5))


@triton.jit
def _weight_kernel(
    out, A, B, W0, c, knee, rows, columns, rank,
    FORM: tl.constexpr, HALF: tl.constexpr, HAS_W0: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    at = row[:, None] * columns + column[None, :]
    tau, height, linear = tl.load(knee), tl.load(knee + 1), tl.load(knee + 2)
    z = _product(A, B, row, column, rows, columns, rank)
    u = z / tau
    if FORM == 1:
        value = height * tl.sin(u)
    else:
        j, g, sign = _cell(u)
        g = tl.where((g == 0.0) & (j != 0.0), _TINY, g)
        total = tl.zeros_like(u)
        for k in tl.static_range(1, HALF + 1):
            plus, minus = tl.load(c + HALF + k), tl.load(c + HALF - k)
            from_plus, from_minus = (j - k) + g, (j + k) + g
            both = (plus * from_minus + minus * from_plus) / (from_plus * from_minus)
            total += both * (1.0 if k % 2 == 0 else -1.0)
        value = linear * z + height * _sinc(g) * (sign * g * total)
    if HAS_W0:
        value += tl.load(W0 + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gradient_kernel(
    G, dZ, dc, A, B, W0, c, knee, rows, columns, rank,
    FORM: tl.constexpr, HALF: tl.constexpr, HAS_W0: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    at = row[:, None] * columns + column[None, :]
    tau, height, linear, bend = tl.load(knee), tl.load(knee + 1), tl.load(knee + 2), tl.load(knee + 3)
    z = _product(A, B, row, column, rows, columns, rank)
    upstream = tl.load(G + at, mask=mask, other=0.0).to(tl.float32)
    u = z / tau
    if FORM == 1:
        value = height * tl.sin(u)
        slope = bend * tl.cos(u)
    else:
        j, g, sign = _cell(u)
        p = _sinc(g)
        near_g = tl.where((g == 0.0) & (j != 0.0), _TINY, g)
        away = sign * near_g * (height * upstream * p)
        at_centre, total, total_of_squares = tl.zeros_like(u), tl.zeros_like(u), tl.zeros_like(u)
        block = dc + (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * (2 * HALF + 1)
        tl.store(block + HALF, 0.0)
        for k in tl.static_range(1, HALF + 1):
            alternating = 1.0 if k % 2 == 0 else -1.0
            plus, minus = tl.load(c + HALF + k), tl.load(c + HALF - k)
            is_plus, is_minus = j == k, j == -k
            from_plus, from_minus = (j - k) + near_g, (j + k) + near_g
            r = 1.0 / (from_plus * from_minus)
            v_plus, v_minus = from_minus * r, from_plus * r
            tl.store(block + HALF + k, tl.sum(tl.sum(alternating * away * v_plus, axis=1), axis=0))
            tl.store(block + HALF - k, tl.sum(tl.sum(alternating * away * v_minus, axis=1), axis=0))
            at_centre = tl.where(is_plus, plus, tl.where(is_minus, minus, at_centre))
            v_plus, v_minus = tl.where(is_plus, 0.0, v_plus), tl.where(is_minus, 0.0, v_minus)
            total += alternating * (plus * v_plus + minus * v_minus)
            total_of_squares += alternating * (plus * v_plus * v_plus + minus * v_minus * v_minus)
        value = linear * z + height * p * (at_centre + sign * g * total)
        slope = sign * (_cosine(g) * total - g * p * total_of_squares)
        slope = linear + bend * (slope + at_centre * _sinc_slope(g))
    if HAS_W0:
        value += tl.load(W0 + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(dZ + at, upstream * slope, mask=mask)
    tl.store(G + at, value.to(G.dtype.element_ty), mask=mask)


def why_not(dtype: torch.dtype) -> str | None:
    """Why these kernels cannot take factors of this precision; None where they can."""
    return None if dtype == torch.float32 else f"the Triton kernels compute in float32, got factors in {dtype}"


def write_weight(out: Tensor, A: Tensor, B: Tensor, W0: Tensor | None, c: Tensor | None, knee: Knee, phi: Form) -> None:
    """As `eager.write_weight`."""
    grid, numbers = _launch(out, A, c, phi, W0)
    _weight_kernel[grid](out, A, B, W0, c, torch.stack(knee), *out.shape, A.shape[0], **numbers)


def write_weight_and_gradients(
    G: Tensor, dZ: Tensor, A: Tensor, B: Tensor, W0: Tensor | None, c: Tensor | None, knee: Knee, phi: Form
) -> Tensor | None:
    """As `eager.write_weight_and_gradients`."""
    grid, numbers = _launch(G, A, c, phi, W0)
    dc = None if c is None else torch.empty(grid[0] * grid[1], len(c), dtype=torch.float32, device=G.device)
    _gradient_kernel[grid](G, dZ, dc, A, B, W0, c, torch.stack(knee), *G.shape, A.shape[0], **numbers)
    return dc


def _launch(matrix: Tensor, A: Tensor, c: Tensor | None, phi: Form, W0: Tensor | None):
    rows, columns = matrix.shape
    grid = (-(-rows // BLOCK_ROWS), -(-columns // BLOCK_COLUMNS))
    half = 0 if c is None else len(c) // 2
    sizes = dict(ROWS=BLOCK_ROWS, COLUMNS=BLOCK_COLUMNS)
    return grid, dict(FORM=_FORM_NUMBER[phi], HALF=half, HAS_W0=W0 is not None, **sizes)


PASSES = Passes(write_weight, write_weight_and_gradients, TILE_ENTRIES)


def weight(W0, A, B, c, knee, phi, dtype) -> Tensor:
    """As `tiles.weight`."""
    W0 = None if W0 is None else W0.contiguous()
    return tiles.weight(PASSES, W0, A.contiguous(), B.contiguous(), c, knee, phi, dtype)


def gradients(G, W0, A, B, c, knee, phi) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `tiles.gradients`."""
    W0 = None if W0 is None else W0.contiguous()
    return tiles.gradients(PASSES, G, W0, A.contiguous(), B.contiguous(), c, knee, phi)
