"""Adapters for use without lrlora: merge into plain weights, write plain LoRA, or the ranks to train one with."""

from lrlora.export.lora.choose import RankChoice
from lrlora.export.lora.pattern import rank_pattern
from lrlora.export.lora.write import LoraExport, export_lora
from lrlora.export.merging.merge import Merge, merge

__all__ = ["LoraExport", "Merge", "RankChoice", "export_lora", "merge", "rank_pattern"]
