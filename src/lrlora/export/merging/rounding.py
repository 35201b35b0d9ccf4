"""What the rounding of W0 + dW to the type of a checkpoint loses of dW."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrlora.errors import InputError
from lrlora.export.merging.quantised import Difference
from lrlora.export.merging.shards import Entry

WARN_ABOVE = 0.01
_PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class MergedLayer:
    """One merged layer.

    Args:
        layer: name of the module or parameter.
        dtype: of the merged weight.
        rounding_loss: ||cast(W0 + dW) - (W0 + dW)||_F / ||dW||_F; 0 where dW is zero.
        norm: ||dW||_F.
    """

    layer: str
    dtype: str
    rounding_loss: float
    norm: float


class Rounding:
    """Adds updates to weights, in float32, and records what their cast loses."""

    def __init__(self, layers: Sequence[str], difference: Difference) -> None:
        self._squares = {name: [0.0, 0.0] for name in layers}
        self._dtypes: dict[str, str] = {}
        self._difference = difference

    def add(self, layer: str, W0: Tensor, dW: Tensor, entry: Entry) -> Tensor:
        """cast(W0 + dW) for a weight, or a part of one.

        Raises:
            InputError: another shape, a quantised weight, or a sum beyond the range of the type.
        """
        if W0.shape != dW.shape:
            raise InputError(
                f"the adapter does not fit this base: {entry.name} is {tuple(W0.shape)} in the files and "
                f"{tuple(dW.shape)} in the adapter; pass the base that it was trained on as --model"
            )
        if W0.dtype not in _PLAIN:
            raise InputError(f"{entry.name} is quantised ({W0.dtype}); pass --model with the model in plain weights")
        total = W0.float() + dW
        merged = total.to(entry.dtype)
        if not torch.isfinite(merged).all():
            raise InputError(f"{entry.name} + dW does not fit into {entry.dtype}; pass another --dtype")
        self._difference.add(layer, W0, dW)
        squares = self._squares[layer]
        squares[0] += torch.linalg.vector_norm(merged.float() - total, dtype=torch.float64).item() ** 2
        squares[1] += torch.linalg.vector_norm(dW, dtype=torch.float64).item() ** 2
        self._dtypes[layer] = str(entry.dtype).removeprefix("torch.")
        return merged

    def rows(self) -> list[MergedLayer]:
        """One row per layer."""
        return [
            MergedLayer(name, self._dtypes[name], math.sqrt(lost / whole) if whole else 0.0, math.sqrt(whole))
            for name, (lost, whole) in self._squares.items()
        ]


def rounding_warnings(rows: Sequence[MergedLayer]) -> list[str]:
    """Warnings for the user where rounding loses more than 1 % of an update."""
    lossy = [row for row in rows if row.rounding_loss > WARN_ABOVE]
    if not lossy:
        return []
    worst = max(lossy, key=lambda row: row.rounding_loss)
    return [
        f"rounding to {worst.dtype} loses more than 1 % of dW in {len(lossy)} of {len(rows)} layers, at most "
        f"{worst.rounding_loss:.1%} in {worst.layer}; pass --dtype float32, or keep adapter and base separate"
    ]
