"""Safetensors shards, read and written tensor by tensor.

The library writes a file from tensors that are all in memory. A shard that is merged on the way need not be: its header
is known beforehand from shapes and types. It is written first, and then one tensor after another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lrlora.errors import InputError
from lrlora.export.base import INDEX, SINGLE
from lrlora.files import read_json, write_json

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}

# an open file keeps what was read of it in memory
_REOPEN_AFTER_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Entry:
    """One tensor of a shard: its name, type and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        count = self.dtype.itemsize
        for length in self.shape:
            count *= length
        return count


def read_layout(folder: Path) -> dict[str, list[Entry]]:
    """The tensors of every shard of a checkpoint, by the shard's file name.

    Raises:
        InputError: a shard that is missing, cut short, or of a type that is not known.
    """
    names = [SINGLE]
    if not (folder / SINGLE).exists():
        names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    layout = {}
    for name in names:
        try:
            with safe_open(folder / name, framework="pt") as file:
                slices = {key: file.get_slice(key) for key in file.keys()}
                unknown = {s.get_dtype() for s in slices.values()} - set(DTYPES)
                if unknown:
                    raise InputError(f"{folder / name} holds tensors of type {unknown.pop()}, which is not plain")
                layout[name] = [Entry(k, DTYPES[s.get_dtype()], tuple(s.get_shape())) for k, s in slices.items()]
        except FileNotFoundError as error:
            raise InputError(f"the base lacks {folder / name}, which its index names; download it again") from error
        except SafetensorError as error:
            raise InputError(f"{folder / name} is not a whole safetensors file ({error}); download it again") from error
    return layout


def read_tensors(path: Path, entries: Iterable[Entry]) -> Iterator[Tensor]:
    """The tensors of a shard, one after another, holding little more than one."""
    waiting = list(entries)
    while waiting:
        read = 0
        with safe_open(path, framework="pt") as file:
            while waiting and read < _REOPEN_AFTER_BYTES:
                entry = waiting.pop(0)
                read += entry.size
                yield file.get_tensor(entry.name)


def write_shard(path: Path, entries: list[Entry], tensors: Iterable[Tensor]) -> None:
    """Write a safetensors file from tensors that come one after another.

    Args:
        path: the file.
        entries: what they are, in the same order.
        tensors: the tensors.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.size
        header[entry.name] = {
            "dtype": NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry, tensor in zip(entries, tensors, strict=True):
            assert (tensor.dtype, tuple(tensor.shape)) == (entry.dtype, entry.shape), entry
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def write_index(folder: Path, layout: dict[str, list[Entry]]) -> None:
    """The index of a checkpoint of several shards; nothing where one file is all."""
    if set(layout) == {SINGLE}:
        return
    entries = [entry for shard in layout.values() for entry in shard]
    weight_map = {entry.name: shard for shard, inside in layout.items() for entry in inside}
    metadata = {"total_size": sum(entry.size for entry in entries)}
    write_json(folder / INDEX, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})
