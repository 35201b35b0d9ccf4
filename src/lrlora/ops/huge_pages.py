"""Memory for matrices of the size of a layer on a CPU, in huge pages.

malloc takes a large matrix from the kernel, and gives it back when it is freed: every layer of every step gets new
pages, 16,384 of them for a float32 matrix of 4096 x 4096, and each one stops the thread that first writes to it. In
huge pages, of 2 MiB as a rule, they are 32.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys

import torch
from torch import Tensor

FROM_BYTES = 8 << 20
"""Bytes from which huge pages are asked for: smaller matrices come from memory that malloc keeps."""


def empty(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """[rows, columns] on the CPU, without values."""
    matrix = torch.empty(rows, columns, dtype=dtype)
    if matrix.nbytes >= FROM_BYTES and (advise := _madvise()) is not None:
        start = -(-matrix.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        whole = (matrix.data_ptr() + matrix.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
        # advice: a kernel that does not take it changes nothing
        advise(start, whole, mmap.MADV_HUGEPAGE)
    return matrix


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right of two matrices, in memory of `empty` where it is large and on the CPU."""
    entries = left.shape[0] * right.shape[1]
    is_plain = type(left) is Tensor and type(right) is Tensor and not torch.compiler.is_compiling()
    if not is_plain or left.device.type != "cpu" or entries * left.element_size() < FROM_BYTES:
        return left @ right
    return torch.mm(left, right, out=empty(left.shape[0], right.shape[1], left.dtype))


@functools.cache
def _madvise():
    if not sys.platform.startswith("linux") or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
