"""The learned ranks while training: a line of ranks.jsonl per record, within 2 % of the training time."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lrlora.errors import InputError
from lrlora.files import append_line, drop_lines_after, read_json_lines
from lrlora.ranks.measure import LayerRank, layer_ranks, measure, updates_of
from lrlora.tuner.model import deltas
from lrlora.tuner.sharded import agreed, is_sharded, whole_layer

FILE = "ranks.jsonl"
SHARE = 0.02
"""Fraction of the training time that records may take, where nobody chose their steps."""
WHOLE = 8
"""Assumed cost of a full record, in quick records, until one is timed: five were measured at width 384, more above."""
RECORDS = 50
"""Most records of a training, where nobody chose their steps."""

_log = logging.getLogger(__name__)


def record_ranks(
    model: nn.Module, step: int, folder: str | Path, adapter_name: str = "default", is_quick: bool = False, **notes: Any
) -> list[LayerRank]:
    """Measure the ranks now and append them to ranks.jsonl in a folder: for a training loop of your own.

    One line of JSON: {"step", "is_quick", "seconds", "layers": [a row of `layer_ranks`, ...]}.

    Args:
        model: a PeftModel with LR-LoRA.
        step: optimizer steps done so far.
        folder: where ranks.jsonl is or shall be.
        adapter_name: which adapter.
        is_quick: as for `layer_ranks`.
        notes: more fields of the line.

    Returns:
        The rows.

    Raises:
        ValueError: as `layer_ranks`.
        InputError: the file cannot be written.

    Example:
        if step % 100 == 0:
            lrlora.record_ranks(model, step, "runs/mine", is_quick=True)
    """
    started = _now(model)
    rows = layer_ranks(model, adapter_name, is_quick)
    line = {"step": step, "is_quick": is_quick, "seconds": round(_now(model) - started, 4), **notes}
    append_line(Path(folder) / FILE, json.dumps({**line, "layers": [row.as_dict() for row in rows]}))
    return rows


def read_records(folder: str | Path) -> list[dict[str, Any]]:
    """The records of ranks.jsonl, their `layers` as `LayerRank`; none where there is no such file.

    Raises:
        InputError: a line that is not JSON, other than a last one cut short.
    """
    path = Path(folder) / FILE
    records = read_json_lines(path) if path.exists() else []
    return [{**record, "layers": [LayerRank.from_dict(row) for row in record["layers"]]} for record in records]


def drop_records_after(folder: str | Path, step: int) -> int | None:
    """Keep the records up to a step, only whole lines; returns the last step kept, None where there is none."""
    return drop_lines_after(Path(folder) / FILE, step)


class RankCallback(TrainerCallback):
    """Records the learned ranks while `transformers.Trainer` trains, in ranks.jsonl and through its trackers.

    Without `every`, it measures what a record costs and keeps all records together within 2 % of the training time:
    quick ones (see `layer_ranks`), full ones where time allows, 50 at most, and always one at the end. With `every`,
    it records every so many steps and at the end, at any cost. A resumed training goes on in the same file, without a
    step twice. Of several processes the first one measures and writes. A model that FSDP2 or ZeRO-3 has cut into shards
    is gathered for it layer by layer, in which all processes take part. Under FSDP1 it says that it records none.

    Args:
        folder: where ranks.jsonl is written; None means the Trainer's output_dir.
        every: optimizer steps between two records, at least 1; None keeps within 2 % of the time.
        log: `trainer.log`, to send the mean ranks of attention and MLP to the trackers that `report_to` names.
        log_layers: send the stable rank of every layer as well, under "ranks/LAYER".
        adapter_name: which adapter.

    Raises:
        InputError: `every` below 1.

    Example:
        trainer.add_callback(lrlora.RankCallback("runs/mine", log=trainer.log))
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        every: int | None = None,
        log: Callable[[dict[str, float]], None] | None = None,
        log_layers: bool = False,
        adapter_name: str = "default",
    ) -> None:
        if every is not None and every < 1:
            raise InputError(f"every must be at least 1, got {every}; leave it out to keep within 2 % of the time")
        self.folder, self.every, self.log, self.log_layers = folder, every, log, log_layers
        self.adapter_name = adapter_name
        self.seconds_spent = 0.0
        self._started = 0.0
        self._costs: dict[bool, float] = {}
        self._timed: set[bool] = set()
        self._last_step: int | None = None
        self._is_off = self._is_writer = self._is_sharded = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Continue the records of an interrupted training; drop those after its checkpoint."""
        if self.folder is None:
            self.folder = args.output_dir
        self.seconds_spent, self._costs, self._timed = 0.0, {}, set()
        self._is_writer, self._is_sharded = state.is_world_process_zero, is_sharded(kwargs["model"])
        takes_part = self._is_writer or self._is_sharded
        self._is_off = not takes_part or self._why_not(kwargs["model"]) is not None
        if self._is_off:
            return
        self._started = _now(kwargs["model"])
        last = drop_records_after(self.folder or ".", state.global_step) if self._is_writer else None
        self._last_step = agreed(last) if self._is_sharded else last

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record, if this step is one to record and time allows."""
        every = self.every or max(1, -(-state.max_steps // RECORDS))
        if self._is_off or state.global_step % every or state.global_step >= state.max_steps:
            return
        if self.every is not None:
            self._record(kwargs["model"], state, control, is_quick=False)
            return
        is_quick = self._is_quick(kwargs["model"])
        if is_quick is not None:
            self._record(kwargs["model"], state, control, is_quick)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the end."""
        if not self._is_off and state.global_step and self._last_step != state.global_step:
            is_whole = self.every is not None or self._is_quick(kwargs["model"], at_end=True) is False
            self._record(kwargs["model"], state, control, is_quick=not is_whole)

    def _is_quick(self, model: nn.Module, at_end: bool = False) -> bool | None:
        """Which record time allows: a full one (False), a quick one (True), or none (None); in all the same."""
        found = self._is_quick_here(model, at_end)
        return agreed(found) if self._is_sharded else found

    def _is_quick_here(self, model: nn.Module, at_end: bool) -> bool | None:
        left = SHARE * (_now(model) - self._started) - self.seconds_spent
        if not self._costs:
            self._estimate_costs(model)
        # the record at the end is always made, and a busy machine may take twice as long for it
        reserve = 0.0 if at_end else 2 * self._costs[True]
        for is_quick in (False, True):
            if self._costs[is_quick] + reserve <= left:
                return is_quick
        return None

    def _estimate_costs(self, model: nn.Module) -> None:
        """Estimate the cost of a quick record from the largest layer; a full one counts as eight until one is timed."""
        before = _now(model)
        found = deltas(model, self.adapter_name)
        # entries of one update, and how many there are, also where A and B are shards
        sizes = [(layer.out_features * layer.in_features, layer.experts or 1) for _, layer, _, _ in found]
        most = max(size for size, _ in sizes)
        name, layer, _, delta = found[[size for size, _ in sizes].index(most)]
        # the first run includes one-time set-up, and other work on the machine may slow any of them
        times = [_now(model)]
        with whole_layer(layer, delta) as (held, _):
            for _ in range(4):
                measure(updates_of(name, held, 1.0)[0], None, is_quick=True)
                times.append(_now(model))
        quick = min(b - a for a, b in pairwise(times)) * sum(size * many for size, many in sizes) / most
        self._costs = {True: quick, False: WHOLE * quick}
        self.seconds_spent += _now(model) - before

    def _record(self, model: nn.Module, state: TrainerState, control: TrainerControl, is_quick: bool) -> None:
        started = _now(model)
        notes = {"elapsed_s": round(started - self._started, 3)}
        try:
            if self._is_writer:
                where = (self.folder or ".", self.adapter_name)
                rows = record_ranks(model, state.global_step, *where, is_quick=is_quick, **notes)
            else:
                rows = layer_ranks(model, self.adapter_name, is_quick)
        except InputError:
            raise
        except ValueError as error:  # an update that holds NaN: whether training stops is not decided here
            _log.warning("no ranks recorded at step %d: %s", state.global_step, error)
            return
        self._last_step = state.global_step
        if self.log is not None and self._is_writer:
            # logging resets the Trainer's flag to log the loss of this step, which it reads after the callbacks
            is_loss_due = control.should_log
            self.log(means(rows, self.log_layers))
            control.should_log = is_loss_due
        seconds = _now(model) - started
        self.seconds_spent += seconds
        # keep the maximum: a record timed on an idle machine underestimates the next
        self._costs[is_quick] = max(seconds, self._costs.get(is_quick, 0.0)) if is_quick in self._timed else seconds
        self._timed.add(is_quick)

    def _why_not(self, model: nn.Module) -> str | None:
        found = deltas(model, self.adapter_name)
        reason = None
        if not found:
            reason = f"the model has no LR-LoRA layer with an adapter named {self.adapter_name!r}"
        elif any(delta.A.ndim < 2 and not hasattr(delta.A, "ds_id") for *_, delta in found):
            reason = "FSDP1 has cut the adapter in parts; measure it after training: lrlora ranks ADAPTER"
        if reason is not None:
            _log.warning("no ranks are recorded: %s", reason)
        return reason


def means(rows: list[LayerRank], with_layers: bool = False) -> dict[str, float]:
    """What a tracker is sent: mean ranks, and gates, of attention and MLP layers, and of every layer if asked."""
    found = {}
    for kind in ("attention", "mlp", "other"):
        of_kind = [row for row in rows if row.kind == kind]
        for field in ("stable_rank", "stable_rank_ba", "rms_over_tau", "gate"):
            values = [getattr(row, field) for row in of_kind]
            if values and None not in values:
                found[f"ranks/{kind}/{field}"] = sum(values) / len(values)
    if with_layers:
        found |= {f"ranks/{row.layer}": row.stable_rank for row in rows}
    return found


def _now(model: nn.Module) -> float:
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.device.type == "cuda":
        # else the measured time would include training steps still in the queue
        torch.cuda.synchronize(parameter.device)
    return time.perf_counter()
