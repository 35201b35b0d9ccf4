"""A row of results.jsonl: what one cell of a study gave, and the one definition of the keys of a row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lrlora.errors import InputError

Phase = Literal["search", "final"]
PHASES: tuple[Phase, ...] = ("search", "final")
Status = Literal["done", "failed", "diverged"]


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What one training run gave. The fields are the keys of its line in results.jsonl, in their order.

    Args:
        study, arm, method, task: names in the study.
        phase: "search": measured on validation rows; "final": on test rows.
        learning_rate, seed: of the run.
        metric, value: name of the metric that counts, and what it is; None where the cell did not come through, as all
            that follows.
        metrics: all metrics by name, the loss among them.
        loss: mean loss on the rows of the phase, in nats.
        train_loss: mean loss over the training, in nats.
        trainable_parameters, total_parameters: numbers, of the model under its arm.
        wall_s: seconds of the training only.
        peak_bytes, peak_kind: memory beyond what the process held before, and what was counted.
        file_bytes: the adapter as PEFT saves it; of a whole model its weights.
        steps: optimizer steps.
        train_rows, eval_rows: rows that were trained on, and measured on.
        ranks: learned rank of every layer, of final cells with one.
        adapter: the method's config as PEFT saves it; None for full fine-tuning.
        notes: what was cut or guessed of the rows. Lines of older versions have no such key.
        status: "done"; "failed"; or "diverged", a rate of a search for facts that has lost.
        reason: why a cell is not done, in one line.
        versions: of packages, Python and device.
        fingerprint: identity of the cell.
        traceback: last calls of an error. Lines without an error have no such key.
        keys: of a row that was read, the keys of its line, with which it is written again; empty for a new one.
    """

    study: str
    arm: str
    method: str
    task: str
    phase: Phase
    learning_rate: float
    seed: int
    metric: str | None = None
    value: float | None = None
    metrics: dict[str, float] | None = None
    loss: float | None = None
    train_loss: float | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    wall_s: float | None = None
    peak_bytes: int | None = None
    peak_kind: str | None = None
    file_bytes: int | None = None
    steps: int | None = None
    train_rows: int | None = None
    eval_rows: int | None = None
    ranks: list[dict[str, Any]] | None = None
    adapter: dict[str, Any] | None = None
    notes: list[str] | None = None
    status: Status = "failed"
    reason: str | None = None
    versions: dict[str, Any]
    fingerprint: str
    traceback: str | None = None
    keys: tuple[str, ...] = dataclasses.field(default=(), repr=False, compare=False)

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> CellResult:
        """A row from the JSON of its line.

        Raises:
            InputError: a key that a row must have is missing, or one is there that this version does not know: what a
                newer version wrote would be lost in silence.
        """
        missing = [key for key in KEYS if key not in line and key not in _LATER]
        if missing:
            raise InputError(f"is no row of a study, it lacks {missing[0]!r}; delete the line, and its cell runs again")
        unknown = [key for key in line if key not in KEYS]
        if unknown:
            raise InputError(
                f"has the key {unknown[0]!r}, which this version does not know; a newer version wrote the row: upgrade "
                "lrlora, or start afresh in another --out"
            )
        return cls(**line, keys=tuple(line))

    def as_dict(self) -> dict[str, Any]:
        """The JSON of its line."""
        new = [key for key in KEYS if key != "traceback" or self.traceback is not None]
        return {key: getattr(self, key) for key in self.keys or new}

    def finite(self) -> CellResult:
        """The row with None in the place of every inf and NaN, which JSON has not."""
        return CellResult.of(_finite(self.as_dict()))

    @property
    def known_value(self) -> float:
        """The value of a cell that came through."""
        assert self.value is not None, self
        return self.value

    @property
    def is_result(self) -> bool:
        """Whether it counts in the result of its arm."""
        return (self.phase, self.status) == ("final", "done")


KEYS = tuple(field.name for field in dataclasses.fields(CellResult) if field.name != "keys")
_LATER = ("notes", "traceback")
"""Keys that not every line has."""


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
