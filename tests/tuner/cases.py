"""One adapted layer, and a tiny adapted encoder with its gradients."""

import torch
from peft import get_peft_model
from torch import nn

from lrlora import LRLoraConfig
from lrlora.tuner.types import Linear
from tests.conftest import disturb, tiny_bert, token_ids


def adapted(out: int = 24, within: int = 16, dtype: torch.dtype = torch.float32, **fields) -> tuple[nn.Module, Linear]:
    """A model of one linear layer named `layer`, adapted."""
    torch.manual_seed(3)
    model = nn.Sequential()
    model.add_module("layer", nn.Linear(within, out))
    model = get_peft_model(model.to(dtype), LRLoraConfig(**{"r": 4, "target_modules": ["layer"], **fields}))
    layer = model.base_model.model.layer
    assert isinstance(layer, Linear)
    return model, layer


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Of one training step on the same tokens."""
    model.train()
    model.zero_grad()
    model(input_ids=token_ids(), labels=torch.tensor([0, 2])).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def adapted_bert(**fields) -> nn.Module:
    """The tiny BERT, adapted everywhere and moved away from its start."""
    fields = {"r": 2, "target_modules": "all-linear", "task_type": "SEQ_CLS", **fields}
    model = get_peft_model(tiny_bert(), LRLoraConfig(**fields))
    disturb(model)
    return model
