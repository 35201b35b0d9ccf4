"""The adapted weight and the gradients of its factors, a tile of rows at a time, with bounded workspace.

B A of a tile is computed, used and dropped while it is in cache. The gradient G of the weight is overwritten by the
weight itself, tile by tile: a backward pass holds one matrix of the size of the layer, not two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lrlora.ops.passes import Factors, Passes

Write = Callable[[Tensor, Tensor | None, Factors], None]
"""Writes the weight of a tile into `out`, from W0 (or None) and the factors."""

WriteBoth = Callable[[Tensor, Tensor, Tensor | None, Factors], Tensor | None]
"""Writes dZ, and the weight in the place of G, from G, dZ, W0 and the factors; returns dL/dc in parts."""


def in_tiles(
    name: str,
    why_not: Callable[[Tensor], str | None],
    signs: Callable[..., Any],
    numbers: Callable[..., Any],
    write: Write,
    write_both: WriteBoth,
    entries: int,
) -> Passes:
    """A backend whose functions write a tile of rows: the arguments of `Passes`, and the most entries of a tile."""
    weight = functools.partial(weight_in_tiles, write, entries)
    gradients = functools.partial(gradients_in_tiles, write_both, entries)
    return Passes(name, why_not, signs, numbers, weight, gradients)


def weight_in_tiles(write: Write, entries: int, W0: Tensor | None, factors: Factors, dtype: torch.dtype) -> Tensor:
    """[W0 +] scale phi(B A) [out, in] in `dtype`, by tiles of so many entries."""
    A, B, _ = factors
    out = torch.empty(B.shape[0], A.shape[1], dtype=dtype, device=A.device)
    for rows in _tiles(out, entries):
        write(out[rows], None if W0 is None else W0[rows], factors.of_rows(rows))
    return out


def gradients_in_tiles(
    write: WriteBoth, entries: int, G: Tensor, W0: Tensor | None, factors: Factors
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dL/dA, dL/dB and dL/dc from G = dL/dW [out, in]; G then holds the weight [W0 +] scale phi(B A)."""
    dA = dc = None
    A, B, _ = factors
    dB = torch.empty_like(B)
    for rows in _tiles(G, entries):
        dZ = torch.empty(rows.stop - rows.start, A.shape[1], dtype=A.dtype, device=A.device)
        W0_of_rows = None if W0 is None else W0[rows]
        dc_in_parts = write(G[rows], dZ, W0_of_rows, factors.of_rows(rows))
        dB[rows] = dZ @ A.T
        dA = B[rows].T @ dZ if dA is None else dA.addmm_(B[rows].T, dZ)
        if dc_in_parts is not None:
            dc = dc_in_parts.sum(0) if dc is None else dc + dc_in_parts.sum(0)
    assert dA is not None
    return dA, dB, dc


def _tiles(matrix: Tensor, entries: int) -> list[slice]:
    out_features, in_features = matrix.shape
    if torch.compiler.is_compiling():
        # a compiled model should be one graph, not one per tile
        return [slice(0, out_features)]
    number = max(1, -(-out_features * in_features // entries))
    step = max(1, -(-out_features // number))
    return [slice(start, min(start + step, out_features)) for start in range(0, out_features, step)]
