"""What a classifier predicts of every held-out row, for a confusion matrix and a look at the mistakes."""

from __future__ import annotations

from typing import Any

import torch

from lrlora.data import TaskData
from lrlora.evaluation.score import Outputs


def predictions_of(task: TaskData, outputs: Outputs) -> list[dict[str, Any]]:
    """A dictionary per held-out row: its number and its file, the class, what is predicted, and how surely.

    Args:
        task: of image classification.
        outputs: logits by the row's place, as `lrlora.evaluation.score.score` keeps them.

    Returns:
        {"row": number in its file or folder, "file": path, or null for images without one, "true" and "predicted":
        names of classes, "confidence": softmax of the predicted class}, in the order of the rows.
    """
    rows = []
    columns = (task.evaluation[name][:] for name in ("row", "file", "label"))
    for place, (number, file, label) in enumerate(zip(*columns, strict=True)):
        shares = torch.tensor(outputs[place], dtype=torch.float64).softmax(dim=0)
        best = int(shares.argmax())
        rows.append(
            {
                "row": number,
                "file": file or None,
                "true": task.labels[label],
                "predicted": task.labels[best],
                "confidence": round(float(shares[best]), 6),
            }
        )
    return rows
