"""The elementwise passes of LR-LoRA in plain torch: any device, any dtype, no compiler.

One call works on one tile of rows, small enough to stay in cache, so that the many small operations of
`lrlora.method.fast` do not each cross main memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrlora.method import fast
from lrlora.method.nonlinearity import Form

TILE_ENTRIES = 1 << 17
"""Entries of a tile: 0.5 MiB in float32, so that the handful of buffers of a pass fit a core's cache."""


def update(Z: Tensor, c: Tensor | None, tau: Tensor, scale: float, phi: Form) -> Tensor:
    """dW = scale phi(Z) of one tile."""
    return fast.phi(Z, c, tau, phi).mul_(scale)


def update_and_gradients(
    Z: Tensor, G: Tensor, c: Tensor | None, tau: Tensor, scale: float, phi: Form
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dW = scale phi(Z), dL/dZ = scale G phi'(Z) and dL/dc of one tile, given G = dL/d(dW)."""
    value, slope = fast.phi_and_slope(Z, c, tau, phi)
    upstream = scale * G
    dc = None if c is None else fast.coefficient_gradient(Z, upstream, len(c), tau)
    return value.mul_(scale), slope.mul_(upstream), dc


def rows_per_tile(out_features: int, in_features: int, device: torch.device) -> int:
    """Rows of a tile: about TILE_ENTRIES entries on a CPU; everything at once elsewhere, where launches cost more."""
    if device.type != "cpu":
        return max(out_features, 1)
    return max(1, min(out_features, TILE_ENTRIES // max(in_features, 1)))
