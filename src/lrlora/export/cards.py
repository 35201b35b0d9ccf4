"""Model cards of merged models and exported LoRAs, and what else is written next to them: their digests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lrlora.saved.adapter import AdapterFolder, base_config
from lrlora.saved.base import IMAGE_CLS
from lrlora.saved.card import OURS, Card, classes_text
from lrlora.saved.card_code import Loading
from lrlora.saved.card_origin import Origin, origin_of_adapter
from lrlora.saved.card_text import table
from lrlora.saved.kept_card import write_card
from lrlora.saved.names import PROCESSOR
from lrlora.saved.sums import write_sums
from lrlora.training.config import TrainConfig
from lrlora.tuner.names import kind_of, type_of

Say = Callable[[str], None]


def finish_merged(folder: Path, out: Path, saved: AdapterFolder, base: Any, layers: Sequence[Any], say: Say) -> None:
    """Write the card and the digests of a merged model.

    Args:
        folder: the new folder, with all else in it.
        out: the folder whose place it takes.
        saved: the adapter that was merged.
        base: the model, of the class that loads the folder.
        layers: what rounding lost of each update, as `lrlora.export.merging.rounding` gives it.
        say: gets a line where a README.md of somebody else is there and stays.
    """
    task = saved.task
    worst = max((row.rounding_loss for row in layers), default=0.0)
    kept = f"W0 + dW, stored as {', '.join(sorted({row.dtype for row in layers}))}; of the update of a layer rounding "
    loading = Loading(type(base).__name__, task, is_merged=True, has_tokenizer=_has_tokenizer(folder))
    what = (
        f"A model of transformers: the base with what an LR-LoRA adapter learned in its weights.{_classes(base, task)}"
        " It needs neither PEFT nor lrlora."
    )
    numbers = [("Merged", f"{kept}lost {worst:.2%} at most.")] if layers else []
    write_card(folder, Card(what, _origin(saved), loading, [OURS], numbers=numbers).text(), out, say)
    write_sums(folder)


def finish_exported(
    folder: Path, out: Path, saved: AdapterFolder, base: Any, layers: Sequence[Any], error: float, say: Say
) -> None:
    """Write the card and the digests of an exported LoRA.

    Args:
        folder: the new folder, with all else in it.
        out: the folder whose place it takes.
        saved: the adapter that was exported.
        base: its base, as it was trained, with or without weights.
        layers: rank and error of each layer, as `lrlora.export.lora.write` gives them.
        error: of all layers together, relative.
        say: gets a line where a README.md of somebody else is there and stays.
    """
    task, tokenizer = saved.task, _has_tokenizer(folder)
    has_words = task != IMAGE_CLS and hasattr(base.config, "vocab_size")
    length = base.get_input_embeddings().weight.shape[0] if has_words else None
    loading = Loading(
        loader=saved.auto_class.__name__,
        task_type=task,
        has_tokenizer=tokenizer,
        num_labels=saved.head_options().get("num_labels"),
        pooling=saved.pooling,
        pads=hasattr(base, "score"),
        vocabulary=None if length in (None, (base_config(saved.base) or {}).get("vocab_size")) else length,
    )
    what = f"A LoRA adapter of PEFT: the update of an LR-LoRA adapter, truncated.{_classes(base, task)}"
    text = f"{_ranks_text(layers)}\n\nError of all updates together, |dW - B'A'| / |dW|: {error:.3g}."
    card = Card(what, _origin(saved), loading, ["lora", OURS], numbers=[("Exported ranks", text)])
    write_card(folder, card.text(), out, say)
    write_sums(folder)


def _ranks_text(layers: Sequence[Any]) -> str:
    groups: dict[str, list[Any]] = {}
    for row in layers:
        groups.setdefault(f"{type_of(row.layer)} ({kind_of(row.layer)})", []).append(row)
    rows = [
        (name, len(of), min(row.rank for row in of), max(row.rank for row in of),
         f"{max(row.relative_error for row in of):.3g}")
        for name, of in groups.items()
    ]  # fmt: skip
    return table(("layers", "number", "lowest rank", "highest rank", "largest error"), rows)


def _origin(saved: AdapterFolder) -> Origin:
    return origin_of_adapter(saved.folder, saved.base, TrainConfig().settings(), saved.is_base_given)


def _classes(base: Any, task: str | None) -> str:
    return classes_text(base.config, task)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("tokenizer_config.json", PROCESSOR))
