"""Several processes that torchrun has started: which one prints and writes, and how its errors reach the others."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import distributed

from lrlora.errors import InputError

Result = TypeVar("Result")


def is_first() -> bool:
    """Whether this is the process that prints and writes; torchrun and accelerate say so in the environment."""
    return int(os.environ.get("RANK", "0")) == 0


def tell(line: str) -> None:
    """Print a line of lrlora for the user on stderr, in the process that prints."""
    if is_first():
        print(f"lrlora: {line}", file=sys.stderr)


def how_many() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def in_first(act: Callable[[], Result]) -> Result:
    """Do something in the first process, once all have come here; every one returns its result, or raises its error.

    Raises:
        InputError: as `act`, in every process.
    """
    if how_many() == 1:
        return act()
    from accelerate import PartialState

    # the Trainer meets the other processes in the same way, later
    PartialState(cpu=not torch.accelerator.is_available())
    distributed.barrier()
    said: list = [None, None]
    if is_first():
        try:
            said = [act(), None]
        except InputError as error:
            said = [None, str(error)]
    distributed.broadcast_object_list(said, src=0)
    if said[1] is not None:
        raise InputError(said[1])
    return said[0]


def largest(number: int) -> int:
    """The largest of a number that every process has."""
    if how_many() == 1:
        return number
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    shared = torch.tensor(number, device=device)
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return int(shared)
