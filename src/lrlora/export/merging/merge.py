"""Merge an adapter into the weights of its base: a checkpoint that needs no lrlora."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrlora.errors import InputError
from lrlora.export.base import MERGED_FILES, base_folder, copy_small_files, read_config
from lrlora.export.cards import finish_merged
from lrlora.export.merging.in_memory import merge_loaded
from lrlora.export.merging.match import Matched, match, parts
from lrlora.export.merging.quantised import Difference
from lrlora.export.merging.rounding import MergedLayer, Rounding
from lrlora.export.merging.shards import Entry, read_layout, read_tensors, write_index, write_shard
from lrlora.export.skeleton import Skeleton, skeleton
from lrlora.files import check_folder, new_folder
from lrlora.saved.adapter import AdapterFolder, base_config, read_adapter
from lrlora.saved.load import load_base_of, refuse_random
from lrlora.saved.pooling import why_not_plain

Say = Callable[[str], None]
"""Where to send a line for the user."""

MERGE_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Merge:
    """What a merge wrote.

    Args:
        folder: the checkpoint.
        layers: its adapted layers, with what rounding lost of each update.
        architecture: class of transformers that loads it.
        was_streamed: False where the whole model had to be loaded.
        quantization_error: how far the full weights are from the quantised ones that were trained on:
            sqrt(sum ||Q(W0) - W0||_F^2) / sqrt(sum ||dW||_F^2) over the adapted layers; None without a quantisation.
    """

    folder: Path
    layers: list[MergedLayer]
    architecture: str
    was_streamed: bool
    quantization_error: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "folder": str(self.folder)}


def merge(
    adapter: str,
    out: str | Path,
    dtype: str | None = None,
    model: str | None = None,
    overwrite: bool = False,
    say: Say = lambda line: None,
) -> Merge:
    """Write W0 + dW, summed in float32, as a checkpoint of plain transformers.

    An adapter that was trained on a quantised base, or in bfloat16, goes into the full weights of the base; how far
    these are from the quantised ones is said.

    Works on the base's safetensors files, tensor by tensor, and keeps their division into shards. Trained heads and
    biases take the place of the base's. Where the names in the files cannot be matched with the model, the model is
    loaded whole and merged in memory, which is said.

    Args:
        adapter: an adapter folder, or a run folder that holds one.
        out: folder to write; must be empty or missing.
        dtype: "float32", "float16" or "bfloat16" for all floating tensors; None keeps the base's own.
        model: base model; None means the one that the adapter names.
        overwrite: take the place of a folder that is there, if it holds nothing but what a merge writes.
        say: gets a line for what the user should know.

    Raises:
        InputError: an adapter, base or folder that cannot work; tied weights; a quantised or pickled base; a pooling
            that the base's class cannot have; an `out` that is, holds or is inside the adapter, its run or its base.

    Example:
        merge("runs/demo", "merged", dtype="bfloat16")
    """
    if dtype is not None and dtype not in MERGE_DTYPES:
        raise InputError(
            f"dtype must be one of {', '.join(MERGE_DTYPES)}, got {dtype!r}; leave it out for the base's own"
        )
    target: torch.dtype | None = None if dtype is None else getattr(torch, dtype)
    saved = read_adapter(adapter, model)
    if reason := why_not_plain(saved.pooling, base_config(saved.base, saved.options) or {}):
        raise InputError(
            f"cannot merge {saved.folder}: {reason}; lrlora export writes a LoRA that lrlora reads rightly"
        )
    sources = saved.sources()
    check_folder(Path(out), overwrite, MERGED_FILES, sources)
    built = skeleton(saved)
    built.refuse_tied()
    base = base_folder(saved.base, saved.options.revision)
    layout = read_layout(base)
    architecture = type(built.base).__name__
    is_same = read_config(base).get("architectures") == [architecture]
    matched = match(built, [entry.name for shard in layout.values() for entry in shard], is_same)
    # reads the names in the files and no weights
    refuse_random(saved, load_base_of(saved, saved.options.plain, device_map="meta").new_parameters)
    difference = Difference(built, saved.options)
    with new_folder(Path(out), overwrite, MERGED_FILES, sources) as folder:
        copy_small_files(base, saved.folder, folder, is_same)
        if isinstance(matched, str):
            say(f"{saved.base}: {matched}; merging the loaded model instead, which needs all of it in memory")
            rows = merge_loaded(saved, folder, target or _usual_dtype(layout), difference)
        else:
            if matched.dropped:
                first, count = matched.dropped[0], len(matched.dropped)
                say(f"left out what {architecture} has no place for: {first} ({count} in all)")
            usual = target or _usual_dtype(layout)
            rows = _Stream(built, saved, matched, target, usual, difference).write(base, layout, folder)
        finish_merged(folder, Path(out), saved, built.base, rows, say)
    for line in difference.said(saved.base):
        say(line)
    return Merge(Path(out).expanduser(), rows, architecture, not isinstance(matched, str), difference.relative)


class _Stream:
    """Goes through the shards of a base, one tensor at a time."""

    def __init__(
        self,
        built: Skeleton,
        saved: AdapterFolder,
        matched: Matched,
        target: torch.dtype | None,
        usual: torch.dtype,
        difference: Difference,
    ) -> None:
        self.built, self.matched, self.target, self.usual = built, matched, target, usual
        self.replaced, self.tokens = built.replaced(), built.tokens(saved)
        layers = built.layers()
        self.rounding = Rounding([layer.name for layer in layers], difference)
        self.place_of = {layer.name: number for number, layer in enumerate(layers)}
        # of a weight whose parts are in several tensors, the last update computed
        self.kept: tuple[str, dict[str, Tensor]] = ("", {})

    def write(self, base: Path, layout: dict[str, list[Entry]], folder: Path) -> list[MergedLayer]:
        """Write all shards, their index and the config."""
        here = set(self.matched.name_of.values())
        new = [Entry(name, self.usual, tuple(t.shape)) for name, t in self.replaced.items() if name not in here]
        merged: dict[str, list[Entry]] = {}
        for shard, entries in layout.items():
            # the parts of one update one after another: it is computed once
            entries = sorted((e for e in entries if e.name in self.matched.name_of), key=self._place)
            written = [self._merged_entry(entry) for entry in entries]
            # saved tensors that the base does not have, such as a head, go into the last shard
            extra = new if shard == list(layout)[-1] else []
            weights = zip(written, read_tensors(base / shard, entries), strict=True)
            tensors = itertools.chain(
                (self._tensor(entry, W0) for entry, W0 in weights),
                (self._tensor(entry, self.replaced[entry.name]) for entry in extra),
            )
            merged[shard] = written + extra
            write_shard(folder / shard, merged[shard], tensors)
        write_index(folder, merged)
        config: Any = self.built.base.config
        config.architectures, config.dtype = [type(self.built.base).__name__], self.usual
        config.save_pretrained(folder)
        return self.rounding.rows()

    def _place(self, entry: Entry) -> int:
        name = self.matched.name_of[entry.name]
        return self.place_of[self.matched.piece_of[name][0].name] if name in self.matched.piece_of else -1

    def _merged_entry(self, entry: Entry) -> Entry:
        name = self.matched.name_of[entry.name]
        shape = tuple(self.replaced[name].shape) if name in self.replaced else entry.shape
        is_cast = self.target is not None and entry.dtype.is_floating_point
        return Entry(name, self.target if is_cast and self.target is not None else entry.dtype, shape)

    def _tensor(self, entry: Entry, W0: Tensor) -> Tensor:
        # an embedding may be adapted and saved: then W0 is what was saved
        W0 = self.replaced.get(entry.name, W0)
        if entry.name in self.tokens:
            rows, values = self.tokens[entry.name]
            W0 = W0.index_copy(0, torch.tensor(rows), values.to(W0.dtype))
        if entry.name not in self.matched.piece_of:
            return W0.to(entry.dtype)
        layer, part = self.matched.piece_of[entry.name]
        if self.kept[0] != layer.name:
            # freed first: two of them would be in memory otherwise
            self.kept = ("", {})
            update = layer.update()
            self.kept = (layer.name, parts(self.built, layer, update) if part else {"": update})
        update = self.kept[1][part] if part else self.kept[1].pop("")
        return self.rounding.add(layer.name, W0, update, entry)


def _usual_dtype(layout: dict[str, list[Entry]]) -> torch.dtype:
    """The floating type that most bytes of a checkpoint have."""
    sizes: dict[torch.dtype, int] = {}
    for shard in layout.values():
        for entry in shard:
            if entry.dtype.is_floating_point:
                sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.size
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)
