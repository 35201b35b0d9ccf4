"""The elementwise passes of LR-LoRA in plain torch: any device, any dtype, no compiler."""

from __future__ import annotations

import torch
from torch import Tensor

from lrlora.method import fast
from lrlora.method.carrier import Carrier, hashes
from lrlora.method.fast import Phi
from lrlora.method.nonlinearity import Form
from lrlora.ops.passes import Factors, Passes
from lrlora.ops.tiles import in_tiles


def write_weight(out: Tensor, W0: Tensor | None, factors: Factors) -> None:
    """out = [W0 +] scale phi(B A), for a tile of rows of out, B and W0."""
    dW = fast.scaled_phi(factors.B @ factors.A, factors.phi)
    out.copy_(dW if W0 is None else W0 + dW)


def write_weight_and_gradients(G: Tensor, dZ: Tensor, W0: Tensor | None, factors: Factors) -> Tensor | None:
    """dZ = scale G phi'(B A), then [W0 +] scale phi(B A) in the place of G; returns dL/dc in parts, to be summed."""
    Z = factors.B @ factors.A
    dW, gradient, dc = fast.scaled_phi_and_gradients(Z, G.to(Z.dtype), factors.phi)
    dZ.copy_(gradient)
    G.copy_(dW if W0 is None else W0 + dW)
    return dc


def signs(carrier: Carrier, A: Tensor, B: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """The hashes of the rows and columns of B A, where B holds all rows or those with the numbers `rows`."""
    return hashes(carrier.seed, B.shape[0] if rows is None else rows, A.shape[1], A.device)


def numbers(
    c: Tensor | None, tau: Tensor | float, scale: float, phi: Form, like: Tensor, offset: float, *signs: Tensor | None
) -> Phi:
    """scale phi as numbers, in the dtype and on the device of `like`; the signs as from `signs`."""
    at = fast.scaled(c, tau, scale, phi, like)
    of_rows, of_columns = signs
    if of_rows is None or of_columns is None or c is None:
        return at
    return at._replace(carried=fast.carried(offset, of_rows, of_columns, c, phi))


def why_not(A: Tensor) -> str | None:
    """None: these passes run everywhere."""
    return None


def of_tiles(entries: int) -> Passes:
    """These passes, with tiles of at most so many entries."""
    return in_tiles("eager", why_not, signs, numbers, write_weight, write_weight_and_gradients, entries)


# 0.5 MiB in float32: the handful of buffers of a pass then fit a core's cache
ON_CPU = of_tiles(1 << 17)
# on a GPU a launch costs more than a trip through memory; this bounds the workspace to a dozen buffers of 64 MiB
ELSEWHERE = of_tiles(1 << 24)


def passes(device: torch.device) -> Passes:
    """These passes, with the tiles that suit the device."""
    return ON_CPU if device.type == "cpu" else ELSEWHERE
