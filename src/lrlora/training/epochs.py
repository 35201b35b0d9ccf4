"""What is drawn anew in every epoch: random crops of images, and batches of rows of like length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lrlora.internals import in_batches_of_like_length


class Drawn(Protocol):
    """What is told which epoch begins."""

    def begin(self, epoch: int) -> None:
        """Draw for the epoch with this number, from 0 on."""
        ...


class DrawAnew(TrainerCallback):
    """Calls `begin` with the number of the epoch, also of a run that is resumed within one."""

    def __init__(self, drawn: Drawn) -> None:
        self._drawn = drawn

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the data loader begins."""
        self._drawn.begin(int(state.epoch or 0))


class RowsOfLikeLength(Sampler[int]):
    """transformers' order of `group_by_length`, drawn from the seed and the number of the epoch alone.

    transformers draws it from torch's global generator, which is in another state where a run resumes in a later epoch:
    the run would train on some rows of that epoch twice, and on others not at all.

    Args:
        lengths: of the rows, in tokens.
        batch_size: rows between two optimizer steps.
        seed: of the order.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def begin(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        # torch reads the lower 32 bits; the factor keeps the epochs of one seed apart from those of the next
        drawn = torch.Generator().manual_seed(1_000_003 * self._seed + self._epoch)
        return iter(in_batches_of_like_length(self._lengths, self._batch_size, drawn))


def is_by_length(arguments: Mapping[str, Any]) -> bool:
    """Whether a trainer's arguments ask for rows of like length; older transformers have another name for it."""
    return arguments.get("train_sampling_strategy") == "group_by_length" or bool(arguments.get("group_by_length"))


def lengths_of(rows: Any) -> list[int]:
    """Tokens of encoded rows; of preference pairs those of the prompt and the longer answer."""
    if "prompt_ids" not in rows.column_names:
        return [len(ids) for ids in rows["input_ids"]]
    columns = (map(len, rows[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    return [prompt + max(answers) for prompt, *answers in zip(*columns, strict=True)]
