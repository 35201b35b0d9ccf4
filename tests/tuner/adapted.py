"""The tiny BERT under an adapter."""

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from lrlora import LRLoraConfig
from tests.conftest import disturb, tiny_bert, token_ids

SHARES = ("matrix", "type", "block", "global", "frozen")


def adapted(**fields) -> PeftModel:
    """The tiny BERT with every linear layer adapted and moved away from its start."""
    model = get_peft_model(
        tiny_bert(), LRLoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "SEQ_CLS", **fields})
    )
    disturb(model)
    return model.eval()


def logits(model: nn.Module) -> torch.Tensor:
    """Of the same tokens every time."""
    with torch.no_grad():
        return model(input_ids=token_ids()).logits
