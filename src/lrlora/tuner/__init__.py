"""LR-LoRA inside PEFT. Importing this package registers it: `peft` then knows PeftType LRLORA, and its helpers that
build optimizers know LR-LoRA.

What is not public in PEFT is imported in `internals.py` only.
"""

from lrlora.tuner import internals
from lrlora.tuner.config import LRLoraConfig
from lrlora.tuner.delta import LRLoraDelta
from lrlora.tuner.layer import LRLoraLayer
from lrlora.tuner.model import LRLoraModel, deltas
from lrlora.tuner.peft_optimizers import answer_for_peft

internals.register(LRLoraConfig, LRLoraModel)
answer_for_peft()

__all__ = ["LRLoraConfig", "LRLoraDelta", "LRLoraLayer", "LRLoraModel", "deltas"]
