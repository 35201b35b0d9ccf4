"""The two passes as Triton kernels: a block of B A, phi and its gradients in registers, one trip through memory.

B A is computed inside, in float32, at any precision that the user allows torch's own products. So are the numbers of
phi and the signs of a carrier, from the knee tau and the seed on the device: computed beforehand they would be some
ninety launches per layer and step, each longer than the kernels of a small layer. The sums for dL/dc are written per
block and added afterwards: the result does not depend on the order in which blocks finish.
"""

# pyright: reportGeneralTypeIssues=false, reportCallIssue=false
# kernels are no ordinary Python: a jit object is called with other arguments than its function has

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lrlora.method import series

SINC, RESIDUAL, SINE, LINEAR = (tl.constexpr(number) for number in range(4))
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
def _mix(x):
    """`carrier._mix`, in the same int32."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * 0x2C1B3C6D
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    return x ^ ((x >> 16) & 0xFFFF)


@triton.jit
def _is_minus(seed, row_numbers, first_row, row, column, rows, HAS_NUMBERS: tl.constexpr):
    """Where the carrier's sign is -1: `carrier.is_minus` of `carrier.hashes`, made here from the numbers only."""
    key = _mix((tl.load(seed) ^ 0x243F6A88).to(tl.int32))
    number = (row + first_row).to(tl.int32)
    if HAS_NUMBERS:
        number = tl.load(row_numbers + row, mask=row < rows, other=0).to(tl.int32)
    return (_mix(number + key) | 1)[:, None] * (_mix(key - 1 - column) | 1)[None, :] < 0


@triton.jit
def _parts(tau, scale, FORM: tl.constexpr):
    """Height, linear and bend of `fast.knee`."""
    height, linear, bend = scale, 0.0 * scale, scale
    if FORM == SINE:
        bend = scale / tau
    if FORM == SINC or FORM == RESIDUAL:
        is_shaped = tau < float("inf")
        height, bend = tl.where(is_shaped, scale * tau, 0.0), tl.where(is_shaped, scale, 0.0)
        linear = scale if FORM == RESIDUAL else tl.where(is_shaped, 0.0, scale)
    return height, linear, bend


@triton.jit
def _linear_slope(c, minus, IS_CARRIED: tl.constexpr):
    """m + g sigma of form "linear"."""
    slope = tl.load(c)
    if IS_CARRIED:
        gate = tl.load(c + 1)
        slope = tl.where(minus, slope - gate, slope + gate)
    return slope


@triton.jit
def _above_zero(risen, z, minus, at_plus, at_minus):
    """Subtract the value at z = 0; exactly 0 there, in any way that the compiler contracts products and sums."""
    return tl.where(z == 0.0, 0.0, risen - tl.where(minus, at_minus, at_plus))


@triton.jit
def _total(x):
    return tl.sum(tl.sum(x, axis=1), axis=0)


@triton.jit(do_not_specialize=["first_row"])
def weight_kernel(
    out, A, B, W0, c, tau_at, seed, row_numbers, sincs, scale, offset, first_row, rows, columns, rank,
    FORM: tl.constexpr, HALF: tl.constexpr, HAS_W0: tl.constexpr, IS_CARRIED: tl.constexpr,
    HAS_NUMBERS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    at = row[:, None] * columns + column[None, :]
    tau = tl.load(tau_at)
    height, linear, _ = _parts(tau, scale, FORM)
    z = _product(A, B, row, column, rows, columns, rank)
    u = z / tau
    minus = z < 0.0
    if IS_CARRIED:
        minus = _is_minus(seed, row_numbers, first_row, row, column, rows, HAS_NUMBERS)
    if FORM == SINE:
        value = height * tl.sin(u)
    elif FORM == LINEAR:
        value = height * _linear_slope(c, minus, IS_CARRIED) * z
    else:
        if IS_CARRIED:
            u += tl.where(minus, -offset, offset)
        j, g, sign = _cell(u)
        total = tl.zeros_like(u)
        at_plus, at_minus = 0.0 * tau, 0.0 * tau
        if IS_CARRIED:
            g = tl.where(g == 0.0, _TINY, g)
            middle = tl.load(c + HALF)
            total += middle / (j + g)
            at_plus = middle * tl.load(sincs + HALF)
            at_minus = at_plus
        else:
            g = tl.where((g == 0.0) & (j != 0.0), _TINY, g)
        for k in tl.static_range(1, HALF + 1):
            c_plus, c_minus = tl.load(c + HALF + k), tl.load(c + HALF - k)
            from_plus, from_minus = (j - k) + g, (j + k) + g
            both = (c_plus * from_minus + c_minus * from_plus) / (from_plus * from_minus)
            total += both * (1.0 if k % 2 == 0 else -1.0)
            if IS_CARRIED:
                near, far = tl.load(sincs + HALF + k), tl.load(sincs + HALF - k)
                at_plus += c_plus * near + c_minus * far
                at_minus += c_plus * far + c_minus * near
        risen = _sinc(g) * (sign * g * total)
        if IS_CARRIED:
            risen = _above_zero(risen, z, minus, at_plus, at_minus)
        value = linear * z + height * risen
    if HAS_W0:
        value += tl.load(W0 + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["first_row"])
def gradient_kernel(
    G, dZ, dc, A, B, W0, c, tau_at, seed, row_numbers, sincs, scale, offset, first_row, rows, columns, rank,
    FORM: tl.constexpr, HALF: tl.constexpr, HAS_W0: tl.constexpr, IS_CARRIED: tl.constexpr,
    HAS_NUMBERS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    at = row[:, None] * columns + column[None, :]
    tau = tl.load(tau_at)
    height, linear, bend = _parts(tau, scale, FORM)
    z = _product(A, B, row, column, rows, columns, rank)
    upstream = tl.load(G + at, mask=mask, other=0.0).to(tl.float32)
    u = z / tau
    minus = z < 0.0
    if IS_CARRIED:
        minus = _is_minus(seed, row_numbers, first_row, row, column, rows, HAS_NUMBERS)
    lifted = tl.where(z == 0.0, 0.0, height * upstream)
    width = 2 * HALF + 1
    if FORM == LINEAR:
        width = 2 if IS_CARRIED else 1
    if FORM != SINE:
        block = dc + (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * width
    if FORM == SINE:
        value = height * tl.sin(u)
        slope = bend * tl.cos(u)
    elif FORM == LINEAR:
        slope = height * _linear_slope(c, minus, IS_CARRIED)
        value = slope * z
        tl.store(block, _total(lifted * z))
        if IS_CARRIED:
            tl.store(block + 1, _total(lifted * tl.where(minus, -z, z)))
    else:
        if IS_CARRIED:
            u += tl.where(minus, -offset, offset)
        j, g, sign = _cell(u)
        p = _sinc(g)
        near_g = tl.where((g == 0.0) & ((j != 0.0) | IS_CARRIED), _TINY, g)
        level = sign * near_g * p
        at_centre, total, total_of_squares = tl.zeros_like(u), tl.zeros_like(u), tl.zeros_like(u)
        risen = tl.zeros_like(u)
        at_plus, at_minus = 0.0 * tau, 0.0 * tau
        sum_plus, sum_minus = 0.0 * tau, 0.0 * tau
        if IS_CARRIED:
            # the sincs at z = 0 are subtracted from their sums
            sum_plus, sum_minus = _total(tl.where(minus, 0.0, lifted)), _total(tl.where(minus, lifted, 0.0))
            middle, near = tl.load(c + HALF), tl.load(sincs + HALF)
            at_plus = middle * near
            at_minus = at_plus
            v = 1.0 / (j + near_g)
            tl.store(block + HALF, _total(lifted * level * v) - near * (sum_plus + sum_minus))
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
                share = _total(lifted * rise)
                if IS_CARRIED:
                    near, far = tl.load(sincs + place), tl.load(sincs + 2 * HALF - place)
                    share -= near * sum_plus + far * sum_minus
                    at_plus += own * near
                    at_minus += own * far
                tl.store(block + place, share)
                risen += own * rise
                at_centre = tl.where(is_here, own, at_centre)
                v = tl.where(is_here, 0.0, v)
                total += own * v
                total_of_squares += own * v * (alternating * v)
        if IS_CARRIED:
            risen = _above_zero(risen, z, minus, at_plus, at_minus)
        value = linear * z + height * risen
        slope = sign * (_cosine(g) * total - g * p * total_of_squares)
        slope = linear + bend * (slope + at_centre * _sinc_slope(g))
    if HAS_W0:
        value += tl.load(W0 + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(dZ + at, upstream * slope, mask=mask)
    tl.store(G + at, value.to(G.dtype.element_ty), mask=mask)
