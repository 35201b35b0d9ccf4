"""What a task is: its kind, its columns, its metrics. The nine tasks of GLUE (arXiv:1804.07461) are here by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from datasets import Dataset

Kind = Literal["classification", "regression", "causal", "preference", "image-classification"]
LANGUAGE: tuple[Kind, ...] = ("causal", "preference")
"""Kinds of task of a causal model."""
IMAGES: Kind = "image-classification"
WITH_CLASSES: tuple[Kind, ...] = ("classification", IMAGES)
"""Kinds of task whose labels are classes."""


@dataclass(frozen=True)
class TaskSpec:
    """Columns of text (one or two), metrics, the split that GLUE keeps labelled, and the class that F1 is about."""

    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    kind: Kind = "classification"
    evaluation_split: str = "validation"
    positive: str = "1"


GLUE: dict[str, TaskSpec] = {
    "cola": TaskSpec(("sentence",), ("matthews",)),
    "sst2": TaskSpec(("sentence",), ("accuracy",)),
    "mrpc": TaskSpec(("sentence1", "sentence2"), ("accuracy", "f1"), positive="equivalent"),
    "qqp": TaskSpec(("question1", "question2"), ("accuracy", "f1"), positive="duplicate"),
    "stsb": TaskSpec(("sentence1", "sentence2"), ("pearson", "spearman"), kind="regression"),
    "mnli": TaskSpec(("premise", "hypothesis"), ("accuracy",), evaluation_split="validation_matched"),
    "qnli": TaskSpec(("question", "sentence"), ("accuracy",)),
    "rte": TaskSpec(("sentence1", "sentence2"), ("accuracy",)),
    "wnli": TaskSpec(("sentence1", "sentence2"), ("accuracy",)),
}

TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence",),
    ("text",),
)
"""Where no task names the columns of text, the first of these that a file has."""


@dataclass
class TaskData:
    """A task, read and checked.

    Args:
        name: of the task.
        kind: "classification", "regression", "causal", "preference" or "image-classification".
        train: rows; columns text [, text_pair], label for the first two kinds, for "causal" those of one shape of
            `lrlora.data.formats.rows_of`, for "preference" those of `lrlora.data.preferences.pairs_of`, for images
            those of `lrlora.data.images.rows_of_images`; and row, the number of the row in its file.
        evaluation: the held-out rows, in the same columns.
        labels: names of the classes, in the order of their numbers; empty unless classification.
        metrics: names of the metrics, the first of them the one to look at.
        source: where the rows came from, for the record.
        positive: number of the class that F1 is about.
        files: where the training and the evaluation rows came from, for messages about a row.
        notes: what the user should know of how the rows were read.
        skipped: how many images were left out because they cannot be decoded.
        image_size: pixels a side that its images need, where nobody says; None: those of the model.
    """

    name: str
    kind: Kind
    train: Dataset
    evaluation: Dataset
    labels: list[str]
    metrics: tuple[str, ...]
    source: str
    positive: int = 1
    files: tuple[str, str] = ("", "")
    notes: tuple[str, ...] = ()
    skipped: int = 0
    image_size: int | None = None

    @property
    def main_metric(self) -> str:
        """The metric to look at: the first one, or "loss" where there is none."""
        return self.metrics[0] if self.metrics else "loss"


MACRO_F1 = "macro_f1"
"""Metric added to those of a task, where there are more than two classes; never the first."""


def compute_metrics(names: tuple[str, ...], predictions: Any, references: Any, positive: int = 1) -> dict[str, float]:
    """GLUE's metrics, from scikit-learn and scipy.

    Args:
        names: of "accuracy", "f1" (of the class `positive`), "macro_f1" (mean of F1 over the classes that occur among
            references or predictions), "matthews", "pearson", "spearman".
        predictions: [rows], class numbers or scores.
        references: [rows], what they should be.
        positive: number of the class that F1 is about.

    Returns:
        One number per name. A correlation with constant predictions is 0.
    """
    import numpy
    from scipy import stats
    from sklearn import metrics

    def correlation(statistic: Any) -> float:
        if numpy.ptp(predictions) == 0 or numpy.ptp(references) == 0:
            return 0.0
        return float(statistic(predictions, references)[0])

    functions = {
        "accuracy": lambda: float(metrics.accuracy_score(references, predictions)),
        # as the mean over the one class, which is defined even where no row is of that class
        "f1": lambda: float(
            metrics.f1_score(
                references,
                predictions,
                labels=[positive],
                average="macro",
                zero_division=0.0,  # pyright: ignore[reportArgumentType]
            )
        ),
        MACRO_F1: lambda: float(
            metrics.f1_score(
                references,
                predictions,
                average="macro",
                zero_division=0.0,  # pyright: ignore[reportArgumentType]
            )
        ),
        "matthews": lambda: float(metrics.matthews_corrcoef(references, predictions)),
        "pearson": lambda: correlation(stats.pearsonr),
        "spearman": lambda: correlation(stats.spearmanr),
    }
    return {name: functions[name]() for name in names}
