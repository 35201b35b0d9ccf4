"""Every file name of an adapter folder and of a run folder."""

from lrlora.ranks.record import FILE as RECORDS
from lrlora.tuner.internals import WEIGHTS as ADAPTER_WEIGHTS

ADAPTER_CONFIG = "adapter_config.json"
"""Of an adapter folder, as PEFT names it; its weights are in ADAPTER_WEIGHTS."""
LABELS = "labels.json"
"""Next to an adapter: the names of its classes, which PEFT does not save."""
BASE = "base.json"
"""Next to an adapter: precision and quantisation of the base that it was trained on, where they are not the default."""
PROCESSOR = "preprocessor_config.json"
"""Of the image processor next to an adapter or a model, as transformers names it."""
POOLING = "pooling.json"
"""Next to an adapter: the pooling that it was trained with, where that was chosen."""
CARD = "README.md"
"""The model card of an adapter, a merged model or an exported LoRA."""
SUMS = "SHA256SUMS"
"""Digests of what was written, as sha256sum reads them: of a run, a merged model or an exported LoRA."""

CONFIG = "config.json"
"""Of a run folder: settings, versions of the libraries, and what was read, as numbers."""
PREDICTIONS = "predictions.jsonl"
"""Of image classification: what was predicted of every held-out row."""
METRICS = "metrics.json"
"""The results; written last."""
RANKS = "ranks.json"
"""The learned ranks at the end; RECORDS are those while training."""
PICTURE = "ranks.png"
LOG = "log.jsonl"
"""Losses and rates while training."""
ADAPTER = "adapter"
CHECKPOINTS = "checkpoints"
LORA = "lora"
"""Plain LoRA with the same settings, a run folder of its own."""
LOCK = ".lock"
"""Held by the process that trains there."""
TRAINER_STATE = "trainer_state.json"
"""What the Trainer writes last into a checkpoint."""

__all__ = [
    "ADAPTER",
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "BASE",
    "CARD",
    "CHECKPOINTS",
    "CONFIG",
    "LABELS",
    "LOCK",
    "LOG",
    "LORA",
    "METRICS",
    "PICTURE",
    "POOLING",
    "PREDICTIONS",
    "PROCESSOR",
    "RANKS",
    "RECORDS",
    "SUMS",
    "TRAINER_STATE",
]
