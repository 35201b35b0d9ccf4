"""The numbers of a report: what runs hold, and what can be concluded from them together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lrlora.errors import InputError
from lrlora.files import read_json
from lrlora.statistics import (
    SMALLEST_EFFECT,
    Interval,
    LayerVariation,
    PairedDifference,
    attention_against_mlp,
    bounds_of,
    layer_variation,
    mean_interval,
    paired_difference,
)
from lrlora.training.local import read_for
from lrlora.training.model import load_adapter
from lrlora.tuner.ranks import UNMOVED, LayerRank, Update, layer_ranks, measure, rank_warnings
from lrlora.tuner.records import read_records
from lrlora.tuner.stored import adapter_settings, stored_config, stored_updates

MEASURES = (
    "stable_rank", "stable_rank_ba", "stable_rank_initial", "effective_rank", "rms_over_tau", "outside_grid",
    "constant_share", "relative_norm", "c_change", "gate",
)  # fmt: skip
"""What is averaged over seeds."""
_SHARES = ("outside_grid", "constant_share", "gate")

# settings in which the seeds of one experiment may differ
_FREE = {"seed", "out", "overwrite", "json", "debug", "verbose", "report_to", "save_steps", "rank_steps", "compare"}


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
        lora_metrics: of plain LoRA beside it, if it was trained.
        records: the ranks while training, as `read_records` gives them.
    """

    folder: Path
    adapter: Path
    rows: list[LayerRank]
    phi: str
    settings: dict[str, Any]
    metrics: dict[str, Any]
    lora_metrics: dict[str, Any]
    records: list[dict[str, Any]]

    @cached_property
    def updates(self) -> list[Update]:
        """A, B, c and tau of every layer."""
        return stored_updates(self.adapter)

    def sources(self, model: str | None = None) -> list[Path]:
        """The folders that hold what it was read from, and those of its base, or of `model` in the place of that."""
        base = model or adapter_settings(self.adapter).get("base_model_name_or_path")
        return [self.folder, *read_for(self.adapter, base)]

    @property
    def warnings(self) -> list[str]:
        """What is wrong with the learned ranks, in words."""
        return rank_warnings(self.rows, self.phi)


def read_run(folder: str | Path, model: str | None = None) -> Run:
    """Read a run folder or an adapter folder.

    The ranks of a run folder stand in its ranks.json. An adapter is measured on its base; where the base is not at hand
    it is measured without, and ||dW|| / ||W0|| is missing.

    Args:
        folder: a run folder, or an adapter folder.
        model: base model to measure on; None means ranks.json, or the base that the adapter names.

    Raises:
        InputError: no adapter there, one of another method, a file cut short, or a base of other shapes.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise InputError(f"no such folder: {folder}; pass a run folder or an adapter folder")
    adapter = path / "adapter" if (path / "adapter" / "adapter_config.json").exists() else path
    config = stored_config(adapter)
    # read now: an adapter cut short is no adapter, even where its ranks were written down before
    updates = stored_updates(adapter)
    if (path / "ranks.json").exists() and model is None:
        rows = _rows(read_json(path / "ranks.json"))
    else:
        rows = _measured(path, model, updates)
    described, metrics = path / "config.json", path / "metrics.json"
    lora = path / "lora" / "metrics.json"
    run = Run(
        folder=path,
        adapter=adapter,
        rows=rows,
        phi=config.phi,
        settings=read_json(described).get("settings", {}) if described.exists() else {},
        metrics=read_json(metrics) if metrics.exists() else {},
        lora_metrics=read_json(lora) if lora.exists() else {},
        records=read_records(path),
    )
    run.__dict__["updates"] = updates
    return run


def _measured(path: Path, model: str | None, updates: list[Update]) -> list[LayerRank]:
    try:
        adapted = load_adapter(str(path), model)
    except InputError:
        if model is not None:
            raise
        return [measure(update, None) for update in updates]
    return layer_ranks(adapted)


def _rows(saved: list[dict[str, Any]]) -> list[LayerRank]:
    known = {field.name for field in dataclasses.fields(LayerRank)}
    return [LayerRank(**{key: value for key, value in row.items() if key in known}) for row in saved]


@dataclass(frozen=True)
class Findings:
    """What runs of one experiment, which differ by their seed, show together.

    Args:
        rows_of_seeds: the ranks of every run.
        variation: of the layers, against both nulls.
        kinds: attention - MLP of "stable_rank", of its null "stable_rank_ba", and of "beyond_lora", their difference.
        table: for every layer its names and, per measure, the Interval over seeds or None.
        mixed: settings other than the seed in which the runs differ, in words.
        warnings: of all runs.
        is_frozen: no coefficient of any layer moved, or phi has none: there is no learned rank.
        metric: name of the task's metric, "" where the runs have none.
        ours: the metric over seeds; None where there is none.
        against_lora: paired with plain LoRA of the same seeds; None where it was not trained.
    """

    rows_of_seeds: list[list[LayerRank]]
    variation: LayerVariation
    kinds: dict[str, PairedDifference]
    table: list[dict[str, Any]]
    mixed: list[str]
    warnings: list[str]
    is_frozen: bool
    metric: str
    ours: Interval | None
    against_lora: PairedDifference | None

    @property
    def seeds(self) -> int:
        """Number of runs."""
        return len(self.rows_of_seeds)

    @property
    def beyond(self) -> str:
        """Whether a rank beyond LoRA's was learned, in words."""
        if self.is_frozen:
            return "no learned rank beyond LoRA's: phi is the one that training started with"
        first, second = self.variation.against_ba, self.variation.against_initial
        if not (first.is_shown and first.mean > 0):
            return f"no learned rank beyond LoRA's: against SR(BA), {first.verdict}"
        if second is None:
            return f"above LoRA's null: SR(dW) is {first.verdict}; the untrained phi was not measured"
        if second.is_shown and second.mean > 0:
            where = "yes, in this run" if self.seeds == 1 else "yes"
            return f"{where}: {first.verdict} than SR(BA), and {second.verdict} than with an untrained phi"
        return (
            f"above SR(BA), but not above an untrained phi: {first.verdict} than SR(BA); against what phi made of the "
            f"same factors before c moved, {second.verdict}"
        )


def findings(runs: Sequence[Run]) -> Findings:
    """Read runs together.

    Args:
        runs: of one experiment, a seed each.

    Raises:
        InputError: none, or runs that have no layer in common.
    """
    rows_of_seeds = [run.rows for run in runs]
    try:
        variation = layer_variation(rows_of_seeds)
    except ValueError as error:
        raise InputError(f"cannot read these runs together: {error}") from error
    has_gates = all(row.gate is not None for rows in rows_of_seeds for row in rows)
    moved = [row.c_change for rows in rows_of_seeds for row in rows]
    metric = runs[0].metrics.get("metric", "")
    bounds = bounds_of(metric)
    values = [run.metrics[metric] for run in runs if metric and metric in run.metrics]
    pairs = [(r.metrics[metric], r.lora_metrics[metric]) for r in runs if metric and metric in r.lora_metrics]
    return Findings(
        rows_of_seeds=rows_of_seeds,
        variation=variation,
        kinds={
            "stable_rank": attention_against_mlp(rows_of_seeds),
            "stable_rank_ba": attention_against_mlp(rows_of_seeds, "stable_rank_ba"),
            "beyond_lora": attention_against_mlp(rows_of_seeds, "beyond_lora"),
            **({"gate": attention_against_mlp(rows_of_seeds, "gate")} if has_gates else {}),
        },
        table=layer_means(rows_of_seeds),
        mixed=_mixed(runs),
        warnings=[f"{run.folder.name}: {text}" if len(runs) > 1 else text for run in runs for text in run.warnings],
        is_frozen=runs[0].phi == "sine" or all(change is not None and change < UNMOVED for change in moved),
        metric=metric,
        ours=mean_interval(values, bounds=bounds) if values else None,
        against_lora=(
            paired_difference(
                [a for a, _ in pairs], [b for _, b in pairs], smallest_effect=SMALLEST_EFFECT, bounds=bounds
            )
            if pairs
            else None
        ),
    )


def layer_means(rows_of_seeds: Sequence[Sequence[LayerRank]]) -> list[dict[str, Any]]:
    """For every layer that all seeds have: its names, and an Interval over seeds per measure (None: not measured)."""
    by_name = [{row.layer: row for row in rows} for rows in rows_of_seeds]
    lines = []
    for first in rows_of_seeds[0] if rows_of_seeds else ():
        same = [rows[first.layer] for rows in by_name if first.layer in rows]
        if len(same) < len(by_name):
            continue
        line: dict[str, Any] = {"layer": first.layer, "block": first.block, "kind": first.kind, "module": first.module}
        for name in MEASURES:
            values = [getattr(row, name) for row in same]
            bounds = (0.0, 1.0 if name in _SHARES else math.inf)
            line[name] = None if None in values else mean_interval(values, bounds=bounds)
        lines.append(line)
    return lines


def _mixed(runs: Sequence[Run]) -> list[str]:
    found = []
    for key in sorted({key for run in runs for key in run.settings} - _FREE):
        values = [run.settings.get(key) for run in runs if run.settings]
        if any(value != values[0] for value in values):
            found.append(f"{key} ({', '.join(sorted({str(value) for value in values}))})")
    seeds = [run.settings.get("seed") for run in runs if run.settings]
    if len(set(seeds)) < len(seeds):
        found.append("nothing: two of them have the same seed, which counts one experiment twice")
    return found
