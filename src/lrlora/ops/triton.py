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

from lrlora.method import series
from lrlora.method.fast import Knee
from lrlora.method.nonlinearity import Form
from lrlora.ops import tiles
from lrlora.ops.tiles import Passes

BLOCK_ROWS, BLOCK_COLUMNS = 16, 128
TILE_ENTRIES = 1 << 26
"""Entries of a tile: bounds dZ, the one buffer beside the weight, to 256 MiB."""

_FORM_NUMBER = {"sinc": 0, "residual": 0, "sine": 1, "linear": 2}
_TINY = tl.constexpr(series.TINY)
# one name per coefficient: the interpreter and the compiler of Triton disagree about tuples of constants
_A0, _A1, _A2, _A3, _A4, _A5, _A6 = (tl.constexpr(a) for a in series.SINC_SERIES[torch.float32])


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
def _is_minus(of_rows, of_columns, row, column, rows, columns):
    """Where the carrier's sign is -1: `carrier.is_minus`, in the same int32."""
    h = tl.load(of_rows + row, mask=row < rows, other=0)[:, None]
    return h * tl.load(of_columns + column, mask=column < columns, other=0)[None, :] < 0


@triton.jit
def _linear_slope(c, minus, IS_CARRIED: tl.constexpr):
    """m + g sigma of form "linear"."""
    slope = tl.load(c)
    if IS_CARRIED:
        gate = tl.load(c + 1)
        slope = tl.where(minus, slope - gate, slope + gate)
    return slope


@triton.jit
def _above_zero(risen, z, minus, at_points):
    """Less what it is where z = 0, and exactly 0 there, however the compiler contracts products and sums."""
    return tl.where(z == 0.0, 0.0, risen - tl.where(minus, tl.load(at_points + 3), tl.load(at_points + 2)))


@triton.jit
def _weight_kernel(
    out, A, B, W0, c, knee, at_points, of_rows, of_columns, rows, columns, rank,
    FORM: tl.constexpr, HALF: tl.constexpr, HAS_W0: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    IS_CARRIED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    at = row[:, None] * columns + column[None, :]
    tau, height, linear = tl.load(knee), tl.load(knee + 1), tl.load(knee + 2)
    z = _product(A, B, row, column, rows, columns, rank)
    u = z / tau
    minus = z < 0.0
    if IS_CARRIED:
        minus = _is_minus(of_rows, of_columns, row, column, rows, columns)
    if FORM == 1:
        value = height * tl.sin(u)
    elif FORM == 2:
        value = height * _linear_slope(c, minus, IS_CARRIED) * z
    else:
        if IS_CARRIED:
            u += tl.where(minus, tl.load(at_points + 1), tl.load(at_points))
        j, g, sign = _cell(u)
        total = tl.zeros_like(u)
        if IS_CARRIED:
            g = tl.where(g == 0.0, _TINY, g)
            total += tl.load(c + HALF) / (j + g)
        else:
            g = tl.where((g == 0.0) & (j != 0.0), _TINY, g)
        for k in tl.static_range(1, HALF + 1):
            c_plus, c_minus = tl.load(c + HALF + k), tl.load(c + HALF - k)
            from_plus, from_minus = (j - k) + g, (j + k) + g
            both = (c_plus * from_minus + c_minus * from_plus) / (from_plus * from_minus)
            total += both * (1.0 if k % 2 == 0 else -1.0)
        risen = _sinc(g) * (sign * g * total)
        if IS_CARRIED:
            risen = _above_zero(risen, z, minus, at_points)
        value = linear * z + height * risen
    if HAS_W0:
        value += tl.load(W0 + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gradient_kernel(
    G, dZ, dc, A, B, W0, c, knee, at_points, of_rows, of_columns, rows, columns, rank,
    FORM: tl.constexpr, HALF: tl.constexpr, HAS_W0: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    IS_CARRIED: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    at = row[:, None] * columns + column[None, :]
    tau, height, linear, bend = tl.load(knee), tl.load(knee + 1), tl.load(knee + 2), tl.load(knee + 3)
    z = _product(A, B, row, column, rows, columns, rank)
    upstream = tl.load(G + at, mask=mask, other=0.0).to(tl.float32)
    u = z / tau
    minus = z < 0.0
    if IS_CARRIED:
        minus = _is_minus(of_rows, of_columns, row, column, rows, columns)
    lifted = tl.where(z == 0.0, 0.0, height * upstream)
    if FORM != 1:
        block = dc + (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * WIDTH
    if FORM == 1:
        value = height * tl.sin(u)
        slope = bend * tl.cos(u)
    elif FORM == 2:
        slope = height * _linear_slope(c, minus, IS_CARRIED)
        value = slope * z
        tl.store(block, tl.sum(tl.sum(lifted * z, axis=1), axis=0))
        if IS_CARRIED:
            tl.store(block + 1, tl.sum(tl.sum(lifted * tl.where(minus, -z, z), axis=1), axis=0))
    else:
        if IS_CARRIED:
            u += tl.where(minus, tl.load(at_points + 1), tl.load(at_points))
        j, g, sign = _cell(u)
        p = _sinc(g)
        near_g = tl.where((g == 0.0) & ((j != 0.0) | IS_CARRIED), _TINY, g)
        level = sign * near_g * p
        at_centre, total, total_of_squares = tl.zeros_like(u), tl.zeros_like(u), tl.zeros_like(u)
        risen = tl.zeros_like(u)
        if IS_CARRIED:
            middle = tl.load(c + HALF)
            v = 1.0 / (j + near_g)
            tl.store(block + HALF, tl.sum(tl.sum(lifted * level * v, axis=1), axis=0))
            # what the sincs are where z = 0 is taken away afterwards, from these two sums
            tl.store(block + 2 * HALF + 1, tl.sum(tl.sum(tl.where(minus, 0.0, lifted), axis=1), axis=0))
            tl.store(block + 2 * HALF + 2, tl.sum(tl.sum(tl.where(minus, lifted, 0.0), axis=1), axis=0))
            risen += middle * level * v
            at_centre = tl.where(j == 0.0, middle, 0.0)
            v = tl.where(j == 0.0, 0.0, v)
            total += middle * v
            total_of_squares += middle * v * v
        else:
            tl.store(block + HALF, 0.0)
        for k in tl.static_range(1, HALF + 1):
            alternating = 1.0 if k % 2 == 0 else -1.0
            from_plus, from_minus = (j - k) + near_g, (j + k) + near_g
            r = 1.0 / (from_plus * from_minus)
            for side in tl.static_range(0, 2):
                place = HALF + k if side == 0 else HALF - k
                own = tl.load(c + place)
                is_here = j == (k if side == 0 else -k)
                v = alternating * ((from_minus if side == 0 else from_plus) * r)
                rise = level * v
                tl.store(block + place, tl.sum(tl.sum(lifted * rise, axis=1), axis=0))
                risen += own * rise
                at_centre = tl.where(is_here, own, at_centre)
                v = tl.where(is_here, 0.0, v)
                total += own * v
                total_of_squares += own * v * (alternating * v)
        if IS_CARRIED:
            risen = _above_zero(risen, z, minus, at_points)
        value = linear * z + height * risen
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
    at, numbers["IS_CARRIED"] = _numbers_of(knee)
    _weight_kernel[grid](out, A, B, W0, c, *at, *out.shape, A.shape[0], **numbers)


def write_weight_and_gradients(
    G: Tensor, dZ: Tensor, A: Tensor, B: Tensor, W0: Tensor | None, c: Tensor | None, knee: Knee, phi: Form
) -> Tensor | None:
    """As `eager.write_weight_and_gradients`."""
    grid, numbers = _launch(G, A, c, phi, W0)
    at, numbers["IS_CARRIED"] = _numbers_of(knee)
    is_lifted = knee.carried is not None and phi != "linear"
    width = 0 if c is None else len(c) + 2 * is_lifted
    sums = None if c is None else torch.empty(grid[0] * grid[1], width, dtype=torch.float32, device=G.device)
    _gradient_kernel[grid](G, dZ, sums, A, B, W0, c, *at, *G.shape, A.shape[0], WIDTH=width, **numbers)
    if c is None or sums is None or knee.carried is None or not is_lifted:
        return sums
    return sums[:, : len(c)] - sums[:, len(c) :] @ knee.carried.sincs


def _numbers_of(knee: Knee) -> tuple[tuple[Tensor | None, ...], bool]:
    """The four numbers of phi; of a carrier its two points, its values there, and the two hashes."""
    first, by = torch.stack(knee[:4]), knee.carried
    if by is None:
        return (first, None, None, None), False
    return (first, torch.cat([by.at, by.value]), by.rows, by.columns), True


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
