"""Run: what a run folder or a bare adapter holds, read together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrlora.errors import InputError
from lrlora.ranks import LayerRank, Update, layer_ranks, rank_warnings
from lrlora.ranks.measure import measure
from lrlora.saved.load import load_adapter
from lrlora.saved.local import adapter_in, read_for
from lrlora.saved.predictions import Predictions, read_predictions
from lrlora.saved.run import RunFolder
from lrlora.saved.updates import adapter_settings, stored_config, stored_updates


@dataclass
class Run:
    """What one run or adapter holds.

    Args:
        folder: where it was read.
        adapter: its adapter folder.
        rows: the learned ranks at the end.
        phi: which nonlinearity.
        settings: of config.json; empty for a bare adapter.
        metrics: of metrics.json; empty for a bare adapter.
        lora_metrics: of plain LoRA, if the run trained it for comparison.
        records: the ranks while training, as `read_records` gives them.
        updates: A, B, c and tau of every layer.
        inputs: what it has read, as numbers (see `lrlora.saved.identity`); None where that is not known.
        predictions: of every held-out image; None of an unfinished run, of other tasks, and of a bare adapter.
    """

    folder: Path
    adapter: Path
    rows: list[LayerRank]
    phi: str
    settings: dict[str, Any]
    metrics: dict[str, Any]
    lora_metrics: dict[str, Any]
    records: list[dict[str, Any]]
    updates: list[Update]
    inputs: dict[str, str] | None = None
    predictions: Predictions | None = None

    def sources(self, model: str | None = None) -> list[Path]:
        """What it was read from: its folder, those of its base, or of `model` instead, and the images it predicted."""
        base = model or adapter_settings(self.adapter).get("base_model_name_or_path")
        named = [self.settings.get(name) for name in ("data", "eval_data")] if self.predictions else []
        data = [Path(name) for name in named if name and Path(name).exists()]
        return [self.folder, *read_for(self.adapter, base), *data]

    @property
    def warnings(self) -> list[str]:
        """What is wrong with the learned ranks, in words."""
        return rank_warnings(self.rows, self.phi)


def read_run(folder: str | Path, model: str | None = None) -> Run:
    """Read a run folder or an adapter folder.

    The ranks of a run folder are in its ranks.json. An adapter is measured on its base. Where the base is not at hand,
    it is measured without it, and ||dW|| / ||W0|| is missing.

    Args:
        folder: a run folder, or an adapter folder.
        model: base model to measure on; None means ranks.json, or the base that the adapter names.

    Raises:
        InputError: no adapter there, one of another method, a file cut short, or a base of other shapes.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise InputError(f"no such folder: {folder}; pass a run folder or an adapter folder")
    adapter, here = adapter_in(path), RunFolder(path)
    config = stored_config(adapter)
    # read now: an adapter cut short is no adapter, even where its ranks were written down before
    updates = stored_updates(adapter)
    written = here.ranks if model is None else None
    return Run(
        folder=path,
        adapter=adapter,
        rows=_measured(path, model, updates) if written is None else written,
        phi=config.phi,
        settings=here.settings,
        metrics=here.metrics,
        lora_metrics=here.lora.metrics,
        records=here.records,
        updates=updates,
        inputs=here.inputs,
        predictions=read_predictions(path, adapter) if here.is_finished else None,
    )


def _measured(path: Path, model: str | None, updates: list[Update]) -> list[LayerRank]:
    try:
        adapted = load_adapter(str(path), model)
    except InputError:
        if model is not None:
            raise
        return [measure(update, None) for update in updates]
    return layer_ranks(adapted)
