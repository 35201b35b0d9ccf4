"""The learned ranks as fields of LoraConfig, to train a plain LoRA with from scratch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from lrlora.export.lora.choose import RankChoice
from lrlora.export.lora.names import pattern_keys
from lrlora.export.lora.plain import layers_of
from lrlora.export.lora.write import common_fields, ranks_of
from lrlora.export.skeleton import ADAPTER, skeleton
from lrlora.files import check_file, write_json
from lrlora.saved.adapter import read_adapter


def rank_pattern(
    adapter: str, choice: RankChoice | None = None, model: str | None = None, file: str | Path | None = None
) -> dict[str, Any]:
    """The ranks that an export would have, as arguments of a `LoraConfig` for a new training.

    Every layer keeps the scale s = alpha / r that it was trained with here, at any new rank.

    Args:
        adapter: an adapter folder, or a run folder that holds one.
        choice: how the ranks are chosen; an energy of 0.99 if left out.
        model: base model; None means the one that the adapter names.
        file: JSON file to write them to.

    Returns:
        r, lora_alpha, rank_pattern, alpha_pattern, target_modules and the rest, for `LoraConfig(**fields)`.

    Raises:
        InputError: as `export_lora`; a `file` that is a folder, or read.

    Example:
        peft.get_peft_model(base, peft.LoraConfig(**rank_pattern("runs/demo", RankChoice(budget=200_000))))
    """
    saved = read_adapter(adapter, model)
    if file is not None:
        check_file(Path(file), saved.sources())
    built = skeleton(saved)
    layers = layers_of(built, saved)
    ranks = ranks_of(layers, RankChoice() if choice is None else choice)
    scales = [layer.layer.scaling[ADAPTER] for layer in layers]
    (r, scale), _ = Counter(zip(ranks, scales, strict=True)).most_common(1)[0]
    keys = pattern_keys([layer.name for layer in layers])
    rows = list(zip(keys, ranks, scales, strict=True))
    alpha = _whole(scale * r)
    alphas = {key: _whole(s * k) for key, k, s in rows}
    fields = {
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": {key: k for key, k, _ in rows if k != r},
        "alpha_pattern": {key: a for key, a in alphas.items() if a != alpha},
        "lora_dropout": saved.config.get("lora_dropout", 0.0),
        **common_fields(saved, built, layers),
    }
    if file is not None:
        write_json(Path(file), fields)
    return fields


def parameters_of(layers: Any, ranks: list[int]) -> int:
    """Parameters of LoRA factors of these ranks."""
    return sum(rank * sum(layer.shape) for layer, rank in zip(layers, ranks, strict=True))


def _whole(alpha: float) -> int | float:
    return int(alpha) if alpha == int(alpha) else alpha
