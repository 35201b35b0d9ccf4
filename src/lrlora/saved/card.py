"""The model card of an adapter, a merged model or an exported LoRA: its README.md, as the hub reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCardData

from lrlora.ranks import LayerRank
from lrlora.saved import names
from lrlora.saved.adapter import AUTO_CLASSES
from lrlora.saved.base import IMAGE_CLS, image_heads
from lrlora.saved.card_code import Loading
from lrlora.saved.card_origin import Origin, is_dataset_of_hub, origin_of_run
from lrlora.saved.card_text import Rows, cell, listed, table
from lrlora.saved.kept_card import signed
from lrlora.saved.provenance import library_versions
from lrlora.saved.run import RunFolder
from lrlora.saved.settings import Settings
from lrlora.tuner.names import type_of

_PAPER = "[LR-LoRA](https://arxiv.org/abs/2606.04325)"
OURS = "lr-lora"
"""The tag of the hub for what was learned with LR-LoRA."""
_PIPELINES = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "CAUSAL_LM": "text-generation",
    "FEATURE_EXTRACTION": "feature-extraction",
    IMAGE_CLS: "image-classification",
}


@dataclass(frozen=True)
class Card:
    """What a card says.

    Args:
        what: of the folder, in a sentence.
        origin: what was trained, from what.
        loading: how it is loaded.
        tags: of the hub.
        picture: whether ranks.png is next to it.
        numbers: heading and lines of further tables, such as what rounding lost.
    """

    what: str
    origin: Origin
    loading: Loading
    tags: Sequence[str]
    picture: bool = False
    numbers: Sequence[tuple[str, str]] = ()

    def text(self) -> str:
        """The README.md, signed."""
        origin = self.origin
        parts = [
            f"---\n{self._front_matter()}\n---",
            f"# {self._title()}",
            self.what,
            "license: to be chosen by whoever publishes this",
            f"## How to load\n\n{self.loading.text(origin.base)}",
            f"## Base\n\n{origin.base.text()}",
        ]
        parts += [f"## {heading}\n\n{text}" for heading, text in self._sections() if text]
        return signed("\n\n".join(parts) + "\n")

    def _front_matter(self) -> str:
        origin = self.origin
        is_merged = self.loading.is_merged
        return ModelCardData(
            base_model=origin.base.hub_name,
            base_model_relation=("finetune" if is_merged else "adapter") if origin.base.hub_name else None,
            library_name="transformers" if is_merged else "peft",
            pipeline_tag=_PIPELINES.get(self.loading.task_type or ""),
            datasets=[origin.settings["data"]] if is_dataset_of_hub(origin.settings.get("data")) else None,
            tags=list(self.tags),
        ).to_yaml()

    def _title(self) -> str:
        kind = (
            "Merged model" if self.loading.is_merged else "LR-LoRA adapter" if self.loading.is_ours else "LoRA adapter"
        )
        task = self.origin.metrics.get("task")
        return f"{kind} of {self.origin.base.name}" + (f" for {task}" if task else "")

    def _sections(self) -> list[tuple[str, str]]:
        origin = self.origin
        picture = f"\n\n![learned ranks by block and module]({names.PICTURE})" if self.picture and origin.ranks else ""
        warned = "".join(f"\n\nWarning: {cell(line)}" for line in origin.metrics.get("warnings", []))
        return [
            ("Data", origin.data_text()),
            ("Settings that differ from the defaults", origin.settings_text()),
            ("Learned ranks", rank_table(origin.ranks) + picture + warned),
            ("Results", origin.results_text()),
            *self.numbers,
            ("Versions", listed({**origin.versions, **({} if origin.versions else library_versions())})),
        ]


def rank_table(ranks: Sequence[Any]) -> str:
    """The mean learned ranks by kind of layer, then of all attention and all MLP layers; nothing without ranks."""
    if not ranks:
        return ""
    groups: dict[str, list[Any]] = {}
    for row in ranks:
        groups.setdefault(f"{type_of(row.layer)} ({row.kind})", []).append(row)
    for kind, title in (("attention", "attention, mean"), ("mlp", "MLP, mean")):
        if found := [row for row in ranks if row.kind == kind]:
            groups[f"**{title}**"] = found
    lines: Rows = [
        (title, len(rows), _mean(rows, "stable_rank"), _mean(rows, "stable_rank_ba"), _mean(rows, "effective_rank"))
        for title, rows in groups.items()
    ]
    said = (
        "Means over layers: the stable rank of the update dW, that of B A alone (what LoRA with these factors would "
        "have), and the effective rank of dW."
    )
    return f"{said}\n\n{table(('layers', 'number', 'SR(dW)', 'SR(BA)', 'effective rank'), lines)}"


def _mean(rows: Sequence[Any], measure: str) -> str:
    values = [getattr(row, measure) for row in rows if getattr(row, measure) is not None]
    return f"{sum(values) / len(values):.2f}" if values else "-"


def card_of_run(
    run: RunFolder, known: Settings, model: Any, tokenizer: Any, metrics: dict[str, Any], ranks: list[LayerRank]
) -> str:
    """The card of the adapter that a run has trained; its results are not written yet.

    Args:
        run: the folder; its config.json is there.
        known: settings with the defaults of this version.
        model: the PeftModel.
        tokenizer: of the model.
        metrics: as in metrics.json.
        ranks: as in ranks.json; empty for plain LoRA.
    """
    adapter = model.peft_config["default"]
    is_ours = adapter.peft_type == "LRLORA"
    base = model.get_base_model()
    task_type = IMAGE_CLS if image_heads(base) else adapter.task_type
    loading = Loading(
        loader=AUTO_CLASSES[task_type].__name__,
        task_type=task_type,
        is_ours=is_ours,
        has_tokenizer=tokenizer is not None,
        num_labels=base.config.num_labels if task_type in ("SEQ_CLS", IMAGE_CLS) else None,
        pooling=run.settings.get("pooling", "auto"),
        pads=hasattr(base, "score"),
    )
    method = f"{_PAPER}, an adapter whose rank is learned" if is_ours else "plain LoRA, trained with lrlora"
    origin = origin_of_run(run, adapter.base_model_name_or_path, known, metrics, ranks)
    what = f"An adapter of PEFT: {method}.{classes_text(base.config, task_type)}"
    return Card(what, origin, loading, [OURS if is_ours else "lora"], picture=is_ours).text()


def classes_text(config: Any, task_type: str | None) -> str:
    """The names of the classes, in the order of the outputs; nothing where there are none."""
    if task_type not in ("SEQ_CLS", IMAGE_CLS) or config.num_labels < 2:
        return ""
    return f" Classes, in the order of the outputs: {', '.join(cell(name) for name in config.id2label.values())}."
