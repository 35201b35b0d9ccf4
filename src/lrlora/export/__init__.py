"""Leave with what was trained: merge into plain weights, write plain LoRA, or the ranks to train a plain LoRA with."""

from lrlora.export.lora.choose import RankChoice
from lrlora.export.lora.pattern import rank_pattern
from lrlora.export.lora.write import LoraExport, export_lora
from lrlora.export.merging.merge import Merge, merge

__all__ = ["LoraExport", "Merge", "RankChoice", "export_lora", "merge", "rank_pattern"]
