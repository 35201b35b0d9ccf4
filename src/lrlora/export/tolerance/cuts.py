"""Plain LoRA of every size out of one adapter, measured in memory.

The base is loaded once, the update of every layer is decomposed once. A size is then measured by putting slices of the
factors into one model of PEFT's LoRA: what is computed is what PEFT computes with the folder that is written at the
end. The price is memory: the factors of the whole update of every layer, for LR-LoRA about twice the adapted weights.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrlora.export.lora.choose import by_worth, ranks_by_budget, total_error
from lrlora.export.lora.factor import Decomposition, Factors
from lrlora.export.lora.plain import AnyLayer, decomposition
from lrlora.export.lora.write import as_peft_names_them, write_lora
from lrlora.export.skeleton import ADAPTER, Skeleton
from lrlora.export.tolerance.curve import Curve, Point
from lrlora.export.tolerance.rows import HeldOut
from lrlora.saved.adapter import AdapterFolder, read_adapter
from lrlora.saved.load import load_adapter, put_saved_on, tokenizer_of


class Cuts:
    """Plain LoRA of any size out of one adapter, measured in one model.

    Args:
        saved: the adapter.
        built: the same on a base without weights.
        layers: its layers.
        rows: what sizes are measured on.
        rank: largest rank of a layer; None: as high as its update goes.
    """

    def __init__(
        self, saved: AdapterFolder, built: Skeleton, layers: Sequence[AnyLayer], rows: HeldOut, rank: int | None
    ) -> None:
        self._saved, self._built, self._layers, self._rows = saved, built, layers, rows
        self.decompositions: list[Decomposition] = [decomposition(layer) for layer in layers]
        self._spectra = [each.sigma[:rank] for each in self.decompositions]
        self._costs = [sum(layer.shape) for layer in layers]
        spent = (self._costs[number] for number in by_worth(self._spectra, self._costs))
        self.sizes: list[int] = list(itertools.accumulate(spent, initial=sum(self._costs)))
        """The parameters of every size there is, from rank 1 in all layers on, one singular value more each."""
        self._model: Any = load_adapter(str(saved.folder), saved.base)
        tokenizer = tokenizer_of(saved)
        self._score = rows.scorer(rows.choose, self._model, tokenizer)
        self._score_report = rows.scorer(rows.report, self._model, tokenizer)
        self._is_plain = False

    def score_adapter(self, curve: Curve) -> None:
        """Measure the adapter itself, on the rows that choose and on those that report."""
        if not curve.adapter:
            choose = self._score(self._model)
            curve.adapter = {
                "choose": choose,
                "report": choose if self._rows.is_same else self._score_report(self._model),
            }
            curve.write()

    def ranks(self, size: int) -> list[int]:
        """The rank of every layer."""
        return ranks_by_budget(self._spectra, self._costs, size)

    def point(self, curve: Curve, position: int) -> Point:
        """Measure a size on the rows that choose, unless the curve holds it."""
        size = self.sizes[position]
        if size not in curve.points:
            ranks = self.ranks(size)
            left = [each.sigma[k:].norm().item() for each, k in zip(self.decompositions, ranks, strict=True)]
            error = total_error(left, [each.sigma.norm().item() for each in self.decompositions])
            curve.points[size] = Point(size, sum(ranks), error, self._score(self._with(ranks)))
            curve.write()
        return curve.points[size]

    def score_report(self, ranks: Sequence[int]) -> dict[str, float]:
        """Measure ranks on the rows that report."""
        return self._score_report(self._with(ranks))

    def factors(self, ranks: Sequence[int]) -> Iterator[Factors]:
        """The factors to write."""
        for layer, each, rank in zip(self._layers, self.decompositions, ranks, strict=True):
            yield each.factors(rank, layer.matrix())

    def _with(self, ranks: Sequence[int]) -> Any:
        """The model with plain LoRA of these ranks."""
        if not self._is_plain:
            self._model, self._is_plain = self._plain(), True
        for layer, each, rank in zip(self._layers, self.decompositions, ranks, strict=True):
            _put(self._model, as_peft_names_them(layer, *each.cut(rank)))
        return self._model

    def _plain(self) -> Any:
        """The loaded base with PEFT's LoRA of rank 1 for the adapter; alpha is r, so the scale is 1 at any rank."""
        base = self._model.unload()
        with tempfile.TemporaryDirectory(prefix="lrlora-") as scratch:
            write_lora(self._saved, self._built, self.factors([1] * len(self._layers)), Path(scratch) / "plain")
            return put_saved_on(base, read_adapter(f"{scratch}/plain", self._saved.base)).eval()


@torch.no_grad()
def _put(model: Any, tensors: dict[str, Tensor]) -> None:
    """Put factors of any rank in the place of those of a model of PEFT's LoRA."""
    for name, value in tensors.items():
        path, _, last = name.rpartition(".")
        parameter = nn.Parameter(value, requires_grad=False)
        if last == "weight":
            model.get_submodule(f"{path}.{ADAPTER}").weight = parameter
        else:
            getattr(model.get_submodule(path), last)[ADAPTER] = parameter
