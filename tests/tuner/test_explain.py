import torch
from peft import get_peft_model

from lrlora import LRLoraConfig
from lrlora.tuner.explain import computation_of
from tests.conftest import tiny_bert


def test_each_way_is_named_with_its_reason():
    model = get_peft_model(
        tiny_bert(), LRLoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS", lora_dropout=0.1)
    ).eval()
    (line,) = computation_of(model)
    assert line == ("13 layers: x (W0 + dW)^T in one product; passes: native")
    (line,) = computation_of(model, autocast=torch.bfloat16)
    assert "base(x) + x dW^T, because autocast would round W0 + dW" in line
    (line,) = computation_of(model.train())
    assert "because dropout acts only on the input of the update" in line
