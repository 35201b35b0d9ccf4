"""What a run of image classification predicted of its held-out images, as it wrote it down."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrlora.errors import InputError
from lrlora.files import read_json
from lrlora.saved import names

_ADVICE = "copy the run again, or train it again with --overwrite"


@dataclass(frozen=True)
class Prediction:
    """Of one image.

    Args:
        row: its number in its file or folder.
        file: its path; None where the image has none.
        true: name of its class.
        predicted: name of the class that was predicted.
        confidence: softmax of that class, in [0, 1].
    """

    row: int
    file: str | None
    true: str
    predicted: str
    confidence: float

    @property
    def is_right(self) -> bool:
        """Whether the predicted class is the true one."""
        return self.true == self.predicted


@dataclass(frozen=True)
class Predictions:
    """Of all held-out images of a run.

    Args:
        classes: their names, in the order of their numbers.
        rows: in the order of the held-out rows.
    """

    classes: list[str]
    rows: list[Prediction]


def read_predictions(run: Path, adapter: Path) -> Predictions | None:
    """The predictions of a run folder, and the classes of its adapter; None where the run wrote none.

    Args:
        run: the run folder.
        adapter: its adapter folder.

    Raises:
        InputError: a line that is no prediction, or of a class that the adapter does not have.
    """
    file = run / names.PREDICTIONS
    if not file.exists():
        return None
    # at line feeds alone: the name of a class may have other characters that end a line
    lines = file.read_bytes().split(b"\n")
    rows = [_prediction(line, f"{file}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError(f"{file} is empty; {_ADVICE}")
    labels = adapter / names.LABELS
    classes = read_json(labels, _ADVICE) if labels.exists() else []
    if strange := sorted({name for row in rows for name in (row.true, row.predicted)} - set(classes)):
        where = labels if labels.exists() else f"{labels}, which is missing"
        raise InputError(f"{file} has the class {strange[0]!r}, which is not in {where}; {_ADVICE}")
    return Predictions(classes, rows)


def _prediction(line: bytes, where: str) -> Prediction:
    try:
        found: Any = Prediction(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}, is no prediction ({error}); {_ADVICE}") from error
    is_number = isinstance(found.confidence, int | float) and math.isfinite(found.confidence)
    if not (isinstance(found.true, str) and isinstance(found.predicted, str) and is_number):
        raise InputError(f"{where}, has no names of classes or no confidence: {line.decode()[:200]}; {_ADVICE}")
    return found
