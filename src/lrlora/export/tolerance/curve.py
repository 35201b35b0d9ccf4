"""The curve of a search in a file: every size that was measured, so that a search that was stopped goes on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lrlora.errors import InputError
from lrlora.files import read_json, write_json

FORMAT = 1


@dataclass(frozen=True)
class Point:
    """One size that was measured.

    Args:
        parameters: of the factors, without heads; `lrlora export --budget` with this number gives the same ranks.
        total_rank: sum of the ranks of all layers.
        relative_error: sqrt(sum ||dW - B'A'||^2) / sqrt(sum ||dW||^2), by the singular values that are left out.
        scores: the metrics on the rows that choose.
    """

    parameters: int
    total_rank: int
    relative_error: float
    scores: dict[str, float]


@dataclass
class Curve:
    """What a search has measured so far; written after every measurement.

    Args:
        file: the JSON file.
        inputs: what the numbers depend on: adapter, base, rows, settings of the evaluation, versions.
        adapter: the metrics of the adapter itself on the rows that "choose" and that "report"; empty before they are
            measured.
        points: by their parameters.
        result: of the last search that was finished.
    """

    file: Path
    inputs: dict[str, Any]
    adapter: dict[str, dict[str, float]] = field(default_factory=dict)
    points: dict[int, Point] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

    def write(self) -> None:
        """Write the file, to be there whole or not at all."""
        points = [asdict(self.points[size]) for size in sorted(self.points)]
        fields = {"format": FORMAT, "inputs": self.inputs, "adapter": self.adapter, "measured": points}
        write_json(self.file, {**fields, "result": self.result})


def open_curve(file: Path, inputs: dict[str, Any], overwrite: bool) -> Curve:
    """The curve in a file, to go on with; an empty one where there is none.

    Args:
        file: the JSON file.
        inputs: what the numbers of this search depend on.
        overwrite: start anew where the file is of a search of something else.

    Raises:
        InputError: the file is of a search of something else and `overwrite` is off, or it is no such file at all.
    """
    if not file.exists():
        return Curve(file, inputs)
    held = read_json(file, "pass another --out")
    if not isinstance(held, dict) or not {"inputs", "measured", "adapter"} <= held.keys():
        raise InputError(f"{file} is there already and is no curve of a search; pass another --out")
    other = [name for name in {**held["inputs"], **inputs} if held["inputs"].get(name) != inputs.get(name)]
    if held.get("format") != FORMAT or other:
        if not overwrite:
            raise InputError(
                f"{file} holds a search with other {', '.join(other) or 'format'}; pass another --out, or --overwrite "
                "to search anew"
            )
        return Curve(file, inputs)
    points = [Point(**point) for point in held["measured"]]
    return Curve(file, inputs, held["adapter"], {point.parameters: point for point in points})
