"""smallest_lora(): the smallest plain LoRA whose metric stays within a tolerance of the adapter that it is cut from."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lrlora.errors import InputError
from lrlora.export.base import EXPORTED_FILES
from lrlora.export.lora.plain import METHODS, layers_of, refuse_what_changes_the_base
from lrlora.export.lora.write import LoraExport, write_lora
from lrlora.export.merging.merge import Say
from lrlora.export.skeleton import skeleton
from lrlora.export.tolerance.curve import Curve, Point, open_curve
from lrlora.export.tolerance.cuts import Cuts
from lrlora.export.tolerance.rows import HALF, HeldOut, held_out_rows
from lrlora.export.tolerance.search import smallest_passing
from lrlora.files import check_folder
from lrlora.saved.adapter import AdapterFolder, read_adapter
from lrlora.saved.identity import digest_of_model
from lrlora.saved.lock import lock_file, unlock
from lrlora.training.config import TrainConfig
from lrlora.training.run import versions
from lrlora.tuner.names import kind_of


@dataclass(frozen=True)
class SmallestLora:
    """What a search found and wrote.

    Args:
        export: the adapter that was written.
        whole_ranks: of the whole update of every layer, in the order of `export.layers`.
        metric: the metric that was looked at; of a loss the tolerance is an increase.
        tolerance: in the unit of the metric.
        rows: how many rows "choose" and "report", and "from" where they are.
        adapter: metrics of the adapter on the rows that "choose" and that "report".
        exported: the same of the export.
        measured: how many sizes were measured, the whole update among them.
        passed_below: parameters of smaller sizes that passed too, although a size between failed.
        failed_below: parameters of the largest size that failed; None where none did.
        curve: the JSON file with all sizes.
        picture: the same as a picture.
    """

    export: LoraExport
    whole_ranks: list[int]
    metric: str
    tolerance: float
    rows: dict[str, Any]
    adapter: dict[str, dict[str, float]]
    exported: dict[str, dict[str, float]]
    measured: int
    passed_below: list[int]
    failed_below: int | None
    curve: Path
    picture: Path

    def mean_ranks(self) -> dict[str, tuple[float, float, int]]:
        """By kind of layer ("attention", "mlp", "other"): mean rank, mean rank of the whole, number of layers."""
        found: dict[str, list[tuple[int, int]]] = {}
        for row, whole in zip(self.export.layers, self.whole_ranks, strict=True):
            found.setdefault(kind_of(row.layer), []).append((row.rank, whole))
        return {
            kind: (sum(r for r, _ in ranks) / len(ranks), sum(w for _, w in ranks) / len(ranks), len(ranks))
            for kind, ranks in sorted(found.items())
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        fields = {**asdict(self), "export": self.export.as_dict(), "mean_ranks": self.mean_ranks()}
        return {**fields, "curve": str(self.curve), "picture": str(self.picture)}


def smallest_lora(
    adapter: str,
    out: str | Path,
    tolerance: float,
    config: TrainConfig,
    choose_on: str = HALF,
    seed: int = 0,
    rank: int | None = None,
    model: str | None = None,
    overwrite: bool = False,
    say: Say = lambda line: None,
) -> SmallestLora:
    """Export an adapter at the smallest size that was found to keep its metric within a tolerance.

    Sizes are numbers of parameters, spent on the layers as `lrlora.export.lora.choose.ranks_by_budget` spends them: by
    the singular values of their updates. The search is `lrlora.export.tolerance.search.smallest_passing`. Next to `out`
    are OUT.tolerance.json, the curve, and OUT.tolerance.png. A search that was stopped goes on from the curve, and so
    does one with another tolerance.

    Args:
        adapter: an adapter folder of LR-LoRA or of PEFT's LoRA, or a run folder that holds one.
        out: folder to write; must be empty or missing.
        tolerance: how much worse the metric may be, in its own unit, at least 0: 0.005 of accuracy, or of a
            loss in nats.
        config: settings that name the task, see `lrlora.export.compare.run_config`.
        choose_on: which rows choose, see `lrlora.export.tolerance.rows.held_out_rows`.
        seed: of the draw of the half that chooses.
        rank: largest rank of a layer; None: as high as its update goes.
        model: base model; None means the one that the adapter names.
        overwrite: replace an older export in `out`, and a curve of another search.
        say: gets a line for what the user should know.

    Raises:
        InputError: a tolerance that the largest size misses; a folder, adapter, base or rows that cannot work.

    Example:
        smallest_lora("runs/demo", "lora", 0.005, run_config("runs/demo")).export.parameters
    """
    # imported here: all else works without matplotlib
    from lrlora.export.tolerance.picture import draw_curve

    _check(tolerance, rank)
    saved = read_adapter(adapter, model)
    check_folder(Path(out), overwrite, EXPORTED_FILES, saved.sources())
    refuse_what_changes_the_base(saved)
    built = skeleton(saved, METHODS)
    layers = layers_of(built, saved)
    rows = held_out_rows(saved, config, choose_on, seed, say)
    place = Path(out).expanduser().resolve()
    curve_file, picture = (place.with_name(f"{place.name}.tolerance.{end}") for end in ("json", "png"))
    if picture.exists() and not curve_file.exists():
        raise InputError(f"{picture} is there already, and no curve next to it; move it away, or pass another --out")
    with _opened(curve_file, _inputs(saved, rows, rank), overwrite) as curve:
        if curve.points:
            say(f"{curve_file}: sizes measured before, and not measured again: {len(curve.points)}")
        cuts = Cuts(saved, built, layers, rows, rank)
        cuts.score_adapter(curve)
        own, metric = curve.adapter, rows.measure.metric
        limit = _limit(own["choose"], metric, tolerance)

        def passes(position: int) -> bool:
            return _is_within(cuts.point(curve, position).scores, metric, limit)

        known = [position for position, size in enumerate(cuts.sizes) if size in curve.points]
        found = smallest_passing(passes, cuts.sizes, known)
        if found is None:
            raise InputError(_missed(cuts.point(curve, len(cuts.sizes) - 1), own["choose"], metric, tolerance, rank))
        point = curve.points[cuts.sizes[found]]
        ranks = cuts.ranks(point.parameters)
        exported = {"choose": point.scores}
        exported["report"] = point.scores if rows.is_same else cuts.score_report(ranks)
        export = write_lora(saved, built, cuts.factors(ranks), out, overwrite, say)
    others = {size: _is_within(other.scores, metric, limit) for size, other in curve.points.items()}
    counts = {"choose": len(rows.choose.evaluation), "report": len(rows.report.evaluation), "from": rows.said}
    result = SmallestLora(
        export=export,
        whole_ranks=[len(each.sigma) for each in cuts.decompositions],
        metric=metric,
        tolerance=tolerance,
        rows=counts,
        adapter=own,
        exported=exported,
        measured=len(curve.points),
        passed_below=sorted(size for size, is_enough in others.items() if is_enough and size < point.parameters),
        failed_below=max((size for size, is_enough in others.items() if not is_enough), default=None),
        curve=curve_file,
        picture=picture,
    )
    curve.result = result.as_dict()
    curve.write()
    draw_curve(picture, metric, list(curve.points.values()), own["choose"][metric], limit, point.parameters)
    return result


@contextlib.contextmanager
def _opened(file: Path, inputs: dict[str, Any], overwrite: bool) -> Iterator[Curve]:
    """The curve, for this process only; adds to an interruption what the curve holds."""
    held = lock_file(file)
    try:
        curve = open_curve(file, inputs, overwrite)
        try:
            yield curve
        except KeyboardInterrupt as error:
            many = len(curve.points)
            left = f"{file} is written ({many} sizes); the same command goes on" if many else "nothing was written"
            raise KeyboardInterrupt(left) from error
    finally:
        unlock(held)


def _check(tolerance: float, rank: int | None) -> None:
    if not (tolerance >= 0 and math.isfinite(tolerance)):
        raise InputError(f"tolerance must be at least 0, in the unit of the metric, got {tolerance}; pass 0.005, say")
    if rank is not None and rank < 1:
        raise InputError(f"rank must be at least 1, got {rank}")


def _inputs(saved: AdapterFolder, rows: HeldOut, rank: int | None) -> dict[str, Any]:
    known = {name: value for name, value in versions().items() if name not in ("python", "threads")}
    which = {"adapter": digest_of_model(str(saved.folder)), "model": digest_of_model(saved.base)}
    return {**which, **rows.inputs(), "rank": rank, "versions": known}


def _limit(own: dict[str, float], metric: str, tolerance: float) -> float:
    if not math.isfinite(own[metric]):
        raise InputError(f"the {metric} of the adapter is {own[metric]}: this adapter is broken; train it again")
    return own[metric] + tolerance if metric == "loss" else own[metric] - tolerance


def _is_within(scores: dict[str, float], metric: str, limit: float) -> bool:
    # up to the rounding of 0.86 - 0.005
    return scores[metric] <= limit + 1e-9 if metric == "loss" else scores[metric] >= limit - 1e-9


def _missed(point: Point, own: dict[str, float], metric: str, tolerance: float, rank: int | None) -> str:
    lost = abs(point.scores[metric] - own[metric])
    largest = "the whole update" if rank is None else f"rank {rank} in every layer"
    advice = "merge it, which is exact (lrlora merge)" if rank is None else "raise --rank or leave it out"
    return (
        f"{largest}, {point.parameters:,} parameters, has {metric} {point.scores[metric]:.4f} on the rows that choose, "
        f"the adapter {own[metric]:.4f}: worse by {lost:.2g}, more than --tolerance {tolerance:g}; pass a tolerance "
        f"above that, or {advice}"
    )
