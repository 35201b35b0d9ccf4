"""Leave with what was trained: merge into plain weights, write plain LoRA, or the ranks to train a plain LoRA with."""

from lrlora.export.choose import RankChoice
from lrlora.export.lora import LoraExport, export_lora
from lrlora.export.merging import Merge, merge
from lrlora.export.pattern import rank_pattern

__all__ = ["LoraExport", "Merge", "RankChoice", "export_lora", "merge", "rank_pattern"]
