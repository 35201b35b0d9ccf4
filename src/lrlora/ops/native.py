"""The passes on a CPU, in C++: `native.cpp`, compiled once per machine, in two seconds, where a C++ compiler is.

A whole matrix is one call. Z = B A, phi, phi', dZ and its products with A and B are computed while a few rows are in
the first cache: no tile of any of them goes through memory. The threads are those of torch.
"""

from __future__ import annotations

import ctypes
import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import pad

from lrlora.method.carrier import Carrier
from lrlora.method.nonlinearity import Form
from lrlora.method.update import at_least_float32
from lrlora.ops import huge_pages, library
from lrlora.ops.expansion import Expansion, expansion
from lrlora.ops.passes import Factors, Passes

FROM_ENTRIES = 1 << 14
"""Entries from which a matrix is shared out among threads, for which starting them costs less than it gains."""

SKIPPED_FROM = 1 << 25
"""Multiplications of a product with dY from which its rows of zeros are left out: the others are copied, and dX is."""

_FORM_NUMBER = {"sinc": 0, "residual": 0, "linear": 1, "sine": 2}
_TYPE_NUMBER = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


class Numbers(NamedTuple):
    """What the library computes phi and the signs from.

    Args:
        form: which f.
        c: coefficients [K], contiguous; None for form "sine".
        tau, scale: knee, and alpha / r or alpha / sqrt(r).
        offset, seed: of the carrier; seed None: without one.
        row_numbers: of the rows of B, where they are not 0, 1, ...
        sincs: sinc(offset - k) and sinc(-offset - k) [2, K].
        series: of the sum of the sincs near its middle; None: the sincs themselves everywhere.
    """

    form: Form
    c: Tensor | None
    tau: float
    scale: float
    offset: float = 0.0
    seed: int | None = None
    row_numbers: Tensor | None = None
    sincs: Tensor | None = None
    series: Expansion | None = None

    def of_rows(self, rows: slice) -> Numbers:
        """The same for a tile of rows of the matrix."""
        if self.seed is None:
            return self
        numbers = torch.arange(rows.start, rows.stop) if self.row_numbers is None else self.row_numbers[rows]
        return self._replace(row_numbers=numbers)


_POINTERS = ("A", "B", "W0", "c", "sincs", "reaches", "terms", "series", "row_numbers", "column_hashes")


class _Matrix(ctypes.Structure):
    """`Matrix` of native.cpp, in its order."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "stride", "rank", "half")),
        *((name, ctypes.c_double) for name in ("per_tau", "height", "linear", "bend", "offset")),
        ("seed", ctypes.c_uint32),
        *((name, ctypes.c_int32) for name in ("form", "W0_type", "type", "threads", "tiers")),
    ]


def signs(carrier: Carrier, A: Tensor, B: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The seed, and the numbers of the rows of B if they are not 0, 1, ..."""
    return torch.as_tensor(carrier.seed, dtype=torch.int64), rows


def numbers(
    c: Tensor | None, tau: Tensor | float, scale: float, phi: Form, like: Tensor, offset: float, *signs: Tensor | None
) -> Numbers:
    """As `eager.numbers`, for the library."""
    c = None if c is None else c.contiguous()
    seed, row_numbers = signs
    near = None
    if c is not None and phi != "linear" and like.dtype == torch.float32:
        near = expansion(c.shape[0], seed is not None)
    if seed is None or c is None:
        return Numbers(phi, c, float(tau), float(scale), series=near)
    row_numbers = None if row_numbers is None else row_numbers.to(torch.int64).contiguous()
    sincs = None if phi == "linear" else _sincs(offset, len(c), c.dtype)
    return Numbers(phi, c, float(tau), float(scale), offset, int(seed), row_numbers, sincs, near)


@functools.lru_cache
def _sincs(offset: float, num_basis: int, dtype: torch.dtype) -> Tensor:
    k = torch.arange(num_basis, dtype=torch.float64) - num_basis // 2
    with torch.inference_mode(False):
        return torch.stack([torch.sinc(offset - k), torch.sinc(-offset - k)]).to(dtype)


def why_not(A: Tensor) -> str | None:
    """Why the library cannot compute from this first factor; None where it can."""
    if A.device.type != "cpu":
        return f"the native passes are for CPUs, got {A.device.type}"
    if type(A) not in (Tensor, Parameter):
        return f"the native passes read plain tensors, got factors of type {type(A).__name__}"
    return library.loaded(at_least_float32(A).dtype).failure


def weight(W0: Tensor | None, factors: Factors, dtype: torch.dtype) -> Tensor:
    """[W0 +] scale phi(B A) [out, in] in `dtype`."""
    A, B, _ = factors
    kept = dtype if dtype in _TYPE_NUMBER else A.dtype
    out = huge_pages.empty(B.shape[0], A.shape[1], kept)
    own_W0, other_W0 = _split(W0)
    own = library.loaded(A.dtype)
    matrix, held = _matrix(factors, own_W0, out, own.step)
    own.weight(matrix, out.data_ptr())
    del held
    return (out if other_W0 is None else other_W0 + out).to(dtype)


def gradients(G: Tensor, W0: Tensor | None, factors: Factors) -> tuple[Tensor, Tensor, Tensor | None]:
    """dL/dA, dL/dB and dL/dc from G = dL/dW [out, in]; G then holds the weight [W0 +] scale phi(B A)."""
    A, B, at = factors
    own = library.loaded(A.dtype)
    place = G if G.is_contiguous() and G.dtype in _TYPE_NUMBER else G.to(A.dtype).contiguous()
    own_W0, other_W0 = _split(W0)
    matrix, held = _matrix(factors, own_W0, place, own.step)
    parts = torch.empty(2 * matrix.threads, A.shape[0], matrix.stride, dtype=A.dtype)
    width = 0 if at.c is None else at.c.shape[0] if at.form != "linear" else 1 if at.seed is None else 2
    dA, dB, dc = (torch.empty(shape, dtype=A.dtype) for shape in (A.shape, B.shape, (width,)))
    own.gradients(matrix, place.data_ptr(), *(tensor.data_ptr() for tensor in (parts, dA, dB, dc)))
    del held
    if other_W0 is not None:
        G.copy_(other_W0 + place)
    elif place is not G:
        G.copy_(place)
    return dA, dB, dc if width else None


def nonzero_rows(dy: Tensor, factors: Factors) -> Tensor | None:
    """The numbers of the rows of dY [*batch, out] that are not all zero; None: the others save under `SKIPPED_FROM`."""
    columns, width = dy.shape[-1], factors.A.shape[1]
    if dy.dim() < 2 or dy.numel() * width < SKIPPED_FROM or not _is_readable(dy) or not dy.is_contiguous():
        return None
    length, rows = dy.shape[-2], dy.numel() // columns
    numbers = torch.empty(rows, dtype=torch.int64)
    own = library.loaded(factors.A.dtype)
    counts = rows // length, length, columns
    found = own.nonzero_rows(dy.data_ptr(), *counts, _TYPE_NUMBER[dy.dtype], numbers.data_ptr())
    return numbers[:found] if (rows - found) * columns * width >= SKIPPED_FROM else None


def _is_readable(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, Parameter) and tensor.dtype in _TYPE_NUMBER


def _split(W0: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """W0 as one that the library reads, or as one that is added by its own class, as quantised and sharded ones are."""
    if W0 is None or _is_readable(W0):
        return W0, None
    return None, W0


def _matrix(factors: Factors, W0: Tensor | None, out: Tensor, step: int) -> tuple[_Matrix, list[Tensor | None]]:
    """What the library is given, and the tensors that must live as long as it reads them."""
    at: Numbers = factors.phi
    rows, columns = out.shape
    stride = -(-columns // step) * step
    A = factors.A.contiguous() if stride == columns else pad(factors.A, (0, stride - columns))
    B, W0 = factors.B.contiguous(), None if W0 is None else W0.contiguous()
    hashes = None if at.seed is None else torch.empty(stride, dtype=torch.int32)
    held = [A, B, W0, at.c, at.sincs, *(at.series or (None, None, None)), at.row_numbers, hashes]
    linear = at.form == "linear"
    finite = math.isfinite(at.tau)
    # split as `nonlinearity.split_tau`: at tau = inf phi is the identity
    height = at.tau if finite else 0.0
    straight = 1.0 if at.form == "residual" or not finite else 0.0
    bend = float(finite)
    if linear:
        height, straight, bend = 1.0, 0.0, 1.0
    elif at.form == "sine":
        height, straight, bend = 1.0, 0.0, 1 / at.tau
    matrix = _Matrix(
        *(None if tensor is None else tensor.data_ptr() for tensor in held),
        *(rows, columns, stride, factors.A.shape[0], 0 if at.c is None or linear else at.c.shape[0] // 2),
        *(1 / at.tau, at.scale * height, at.scale * straight, at.scale * bend, at.offset),
        *(0 if at.seed is None else at.seed, _FORM_NUMBER[at.form]),
        *(0 if W0 is None else _TYPE_NUMBER[W0.dtype], _TYPE_NUMBER[out.dtype], _threads(rows, columns)),
        0 if at.series is None else at.series.terms.shape[0],
    )
    return matrix, held


def _threads(rows: int, columns: int) -> int:
    return 1 if rows * columns < FROM_ENTRIES else max(1, min(torch.get_num_threads(), rows // 4))


PASSES = Passes("native", why_not, signs, numbers, weight, gradients, nonzero_rows)
