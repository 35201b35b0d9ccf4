"""What the tests of generation share: a decoder of random weights that has learned what it was asked to."""

from pathlib import Path

from lrlora.training import TrainConfig, train
from tests.conftest import write_rows

ROWS = [
    {"instruction": "name a fruit", "output": "the red apple"},
    {"instruction": "name a colour", "output": "blue"},
    {"instruction": "which day comes after the long week", "output": "sunday"},
]


def learned(folder: Path, decoder: Path) -> Path:
    """A run whose adapter knows ROWS by heart; it writes with plain headings."""
    data = write_rows(folder / "rows.jsonl", ROWS)
    fields = {"max_steps": 50, "batch_size": 3, "r": 8, "learning_rate": 2e-2, "lr_scheduler": "constant"}
    train(TrainConfig.of(model=str(decoder), data=str(data), eval_data=str(data), out=str(folder / "run"), **fields))
    return folder / "run"
