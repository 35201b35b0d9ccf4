"""A tiny BERT with an adapter whose ranks are measured."""

import peft

import lrlora
from tests.conftest import disturb, tiny_bert


def adapted(**fields) -> peft.PeftModel:
    """A tiny BERT with an adapter that has moved."""
    config = lrlora.LRLoraConfig(r=2, target_modules=["query", "dense"], task_type="SEQ_CLS", **fields)
    model = peft.get_peft_model(tiny_bert(), config)
    disturb(model)
    return model
