"""Used where names of files and model do not match: merge the loaded model and let transformers save it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lrlora.export.merging.quantised import Difference
from lrlora.export.merging.rounding import MergedLayer, Rounding
from lrlora.export.merging.shards import Entry
from lrlora.export.skeleton import ADAPTER, AdaptedLayer
from lrlora.saved.adapter import AdapterFolder
from lrlora.saved.load import load_adapter
from lrlora.tuner import deltas


def merge_loaded(saved: AdapterFolder, folder: Path, dtype: torch.dtype, difference: Difference) -> list[MergedLayer]:
    """Load the base in float32 with the adapter, merge, cast and save into `folder`."""
    model: Any = load_adapter(str(saved.folder), saved.base, saved.options.plain)
    found = deltas(model, ADAPTER)
    layers = [AdaptedLayer(name.removeprefix("base_model.model."), layer) for name, layer, _, _ in found]
    rounding = Rounding([layer.name for layer in layers], difference)
    for layer in layers:
        W0 = layer.layer.float_weight()
        rounding.add(layer.name, W0, layer.update(), Entry(layer.weight_name, dtype, tuple(W0.shape)))
    merged = model.merge_and_unload().to(dtype)
    merged.save_pretrained(folder)
    return rounding.rows()
