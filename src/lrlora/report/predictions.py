"""What runs of image classification predicted: how much is right, which classes are confused, and the mistakes."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass

from lrlora.data.tasks import MACRO_F1, compute_metrics
from lrlora.saved.predictions import Prediction
from lrlora.saved.results import Run
from lrlora.statistics import Interval, bounds_of, mean_interval

MATRIX_CLASSES = 30
"""With more classes the most confused pairs are shown in place of a matrix."""
PAIRS = 40
MISTAKES = 60
"""So many pairs, and mistakes, are shown at most."""


@dataclass(frozen=True)
class Mistake:
    """An image that at least one run got wrong.

    Args:
        place: among the held-out rows.
        row: its number in its file or folder.
        file: the last two parts of its path; None where it has none.
        true: name of its class.
        predicted: names of the wrong classes with the number of runs, the most frequent first.
        wrong_in: in how many runs it is wrong.
        confidence: softmax of the wrong class, the mean over the runs that are wrong.
    """

    place: int
    row: int
    file: str | None
    true: str
    predicted: list[tuple[str, int]]
    wrong_in: int
    confidence: float


@dataclass(frozen=True)
class Confused:
    """Images of one class that were taken for another.

    Args:
        true: name of the class.
        predicted: name of the other class.
        count: how many, over all runs.
        share: of the images of the class.
    """

    true: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class Predicted:
    """What runs predicted of the same held-out images.

    Args:
        runs: one or more.
        classes: their names, in the order of their numbers.
        images: how many.
        counts: [true][predicted], images of all runs together.
        accuracy: top 1, the mean over the runs.
        macro_f1: mean of F1 over the classes that occur, the mean over the runs.
        recalls: by class, the mean over the runs; None where no image is of the class.
        mistakes: those that more runs make first, then the most confident.
        warnings: runs whose metrics.json says something else.
    """

    runs: list[Run]
    classes: list[str]
    images: int
    counts: list[list[int]]
    accuracy: Interval
    macro_f1: Interval
    recalls: list[Interval | None]
    mistakes: list[Mistake]
    warnings: list[str]

    @property
    def has_matrix(self) -> bool:
        """Whether the classes are few enough for a matrix."""
        return len(self.classes) <= MATRIX_CLASSES

    @property
    def of_class(self) -> list[int]:
        """How many held-out images are of each class."""
        return [sum(row) // len(self.runs) for row in self.counts]

    @property
    def confused(self) -> list[Confused]:
        """Pairs of classes by the number of images that were taken for the other, the most first."""
        found = [
            Confused(self.classes[a], self.classes[b], count, count / sum(row))
            for a, row in enumerate(self.counts)
            for b, count in enumerate(row)
            if a != b and count
        ]
        return sorted(found, key=lambda pair: (-pair.count, -pair.share))

    @property
    def taken_for(self) -> list[Confused | None]:
        """By class the other class that its images were most often taken for."""
        first = {}
        for pair in self.confused:
            first.setdefault(pair.true, pair)
        return [first.get(name) for name in self.classes]


def predicted(runs: Sequence[Run]) -> list[Predicted]:
    """What runs predicted, together where their held-out images are the same.

    Args:
        runs: any; those without predictions are left out.

    Returns:
        One for every set of held-out images, in the order of the runs.
    """
    same: dict[object, list[Run]] = {}
    for run in runs:
        if run.predictions is not None:
            rows = tuple((each.row, each.true) for each in run.predictions.rows)
            same.setdefault(((run.inputs or {}).get("data"), tuple(run.predictions.classes), rows), []).append(run)
    return [_together(group) for group in same.values()]


def _together(runs: list[Run]) -> Predicted:
    of_runs = [run.predictions.rows for run in runs if run.predictions is not None]
    assert runs[0].predictions is not None
    classes = runs[0].predictions.classes
    number_of = {name: number for number, name in enumerate(classes)}
    total = [[0] * len(classes) for _ in classes]
    metrics, recalls, warnings = [], [], []
    for run, rows in zip(runs, of_runs, strict=True):
        true, guessed = ([number_of[getattr(row, side)] for row in rows] for side in ("true", "predicted"))
        metrics.append(compute_metrics(("accuracy", MACRO_F1), guessed, true))
        warnings += [
            f"{run.folder.name}: its predictions have {name} {value:.4f}, its metrics {run.metrics[name]:.4f}: "
            "they are of different trainings"
            for name, value in metrics[-1].items()
            if abs(run.metrics.get(name, value) - value) > 1e-6
        ]
        pairs = collections.Counter(zip(true, guessed, strict=True))
        for (a, b), count in pairs.items():
            total[a][b] += count
        sizes = collections.Counter(true)
        recalls.append([pairs[a, a] / sizes[a] if sizes[a] else None for a in range(len(classes))])
    return Predicted(
        runs=runs,
        classes=classes,
        images=len(of_runs[0]),
        counts=total,
        accuracy=_interval([found["accuracy"] for found in metrics]),
        macro_f1=_interval([found[MACRO_F1] for found in metrics]),
        recalls=[None if None in values else _interval(values) for values in zip(*recalls, strict=True)],
        mistakes=_mistakes(of_runs),
        warnings=warnings,
    )


def _interval(values: Sequence[float]) -> Interval:
    return mean_interval(values, bounds=bounds_of("accuracy"))


def _mistakes(of_runs: Sequence[Sequence[Prediction]]) -> list[Mistake]:
    found = []
    for place, of_image in enumerate(zip(*of_runs, strict=True)):
        wrong = [each for each in of_image if not each.is_right]
        if wrong:
            file = of_image[0].file
            short = None if file is None else "/".join(file.replace("\\", "/").split("/")[-2:])
            names = collections.Counter(each.predicted for each in wrong).most_common()
            mean = sum(each.confidence for each in wrong) / len(wrong)
            found.append(Mistake(place, wrong[0].row, short, wrong[0].true, names, len(wrong), mean))
    return sorted(found, key=lambda each: (-each.wrong_in, -each.confidence, each.place))
