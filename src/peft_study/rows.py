"""The rows of a task in three parts: what trains, what chooses the learning rate, what gives the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lrlora.data import TaskData
from lrlora.saved.identity import digest_of_rows
from peft_study.result import Phase

SPLIT_SEED = 0
"""Of every draw and split of rows: they are the same for all seeds of cells."""


@dataclass(frozen=True)
class Parts:
    """A task twice, with the same rows to train on.

    Args:
        search: the learning rate is chosen on its evaluation rows.
        final: no choice is made on its evaluation rows, which give the result. Of facts both are all facts.
        further: by phase and name, what a model is also scored on, such as the test rows of commonsense tasks.
    """

    search: TaskData
    final: TaskData
    further: Mapping[Phase, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, phase: Phase) -> TaskData:
        """The rows of a phase."""
        return self.search if phase == "search" else self.final

    def digest(self, phase: Phase) -> str:
        """A number for all that is read in a phase."""
        further = self.further.get(phase, {}).items()
        return digest_of_rows(self.of(phase)) + "".join(fingerprint(**{name: rows}) for name, rows in further)


def fingerprint(**parts: Any) -> str:
    """The identity of a cell: a hash of everything that determines its result, but for versions and hardware."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]
