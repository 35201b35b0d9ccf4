"""The elementwise passes of LR-LoRA in plain torch: any device, any dtype, no compiler."""

from __future__ import annotations

import torch
from torch import Tensor

from lrlora.method import fast
from lrlora.method.carrier import Carrier, hashes
from lrlora.method.fast import Knee
from lrlora.method.nonlinearity import Form
from lrlora.ops import tiles
from lrlora.ops.tiles import Passes

TILE_ENTRIES = 1 << 17
"""Entries of a tile on a CPU: 0.5 MiB in float32: the handful of buffers of a pass then fit a core's cache."""

TILE_ENTRIES_ELSEWHERE = 1 << 24
"""On a GPU a launch costs more than a trip through memory; this bounds the workspace to a dozen buffers of 64 MiB."""


def write_weight(out: Tensor, A: Tensor, B: Tensor, W0: Tensor | None, c: Tensor | None, knee: Knee, phi: Form) -> None:
    """out = [W0 +] scale phi(B A), for a tile of rows of out, B and W0."""
    write_weight_of_product(out, B @ A, W0, c, knee, phi)


def write_weight_and_gradients(
    G: Tensor, dZ: Tensor, A: Tensor, B: Tensor, W0: Tensor | None, c: Tensor | None, knee: Knee, phi: Form
) -> Tensor | None:
    """dZ = scale G phi'(B A), then [W0 +] scale phi(B A) in the place of G; returns dL/dc in parts, to be summed."""
    return write_both_of_product(G, dZ, B @ A, W0, c, knee, phi)


def write_weight_of_product(out: Tensor, Z: Tensor, W0: Tensor | None, c: Tensor | None, knee: Knee, phi: Form) -> None:
    """As `write_weight`, from Z = B A: the part that `compiled` compiles."""
    dW = fast.scaled_phi(Z, c, knee, phi)
    out.copy_(dW if W0 is None else W0 + dW)


def write_both_of_product(
    G: Tensor, dZ: Tensor, Z: Tensor, W0: Tensor | None, c: Tensor | None, knee: Knee, phi: Form
) -> Tensor | None:
    """As `write_weight_and_gradients`, from Z = B A: the part that `compiled` compiles."""
    dW, gradient, dc = fast.scaled_phi_and_gradients(Z, G.to(Z.dtype), c, knee, phi)
    dZ.copy_(gradient)
    G.copy_(dW if W0 is None else W0 + dW)
    return dc


def signs(carrier: Carrier, A: Tensor, B: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """The hashes of the rows and columns of B A, where B holds all rows or those with the numbers `rows`."""
    return hashes(carrier.seed, B.shape[0] if rows is None else rows, A.shape[1], A.device)


def numbers(
    tau: Tensor | float, scale: float, phi: Form, like: Tensor, c: Tensor | None, offset: float, *signs: Tensor | None
) -> Knee:
    """What the passes need of phi besides c, in the dtype and on the device of `like`; the signs as from `signs`."""
    at = fast.knee(tau, scale, phi, like)
    of_rows, of_columns = signs
    if of_rows is None or of_columns is None or c is None:
        return at
    return at._replace(carried=fast.carried(offset, of_rows, of_columns, c, phi))


def passes(device: torch.device) -> Passes:
    """These passes, with the tiles that suit the device."""
    entries = TILE_ENTRIES if device.type == "cpu" else TILE_ENTRIES_ELSEWHERE
    return Passes(write_weight, write_weight_and_gradients, entries)


def weight(W0, A, B, c, knee, phi, dtype) -> Tensor:
    """As `tiles.weight`."""
    return tiles.weight(passes(A.device), W0, A, B, c, knee, phi, dtype)


def gradients(G, W0, A, B, c, knee, phi) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `tiles.gradients`."""
    return tiles.gradients(passes(A.device), G, W0, A, B, c, knee, phi)
