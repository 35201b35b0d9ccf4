"""Layers that share one phi hold one parameter theta."""

import pytest
import torch
from peft import PeftModel
from torch import nn

from lrlora import param_groups
from lrlora.tuner import deltas
from tests.conftest import tiny_bert, token_ids
from tests.tuner.adapted import SHARES, adapted


def test_loading_by_assignment_keeps_shared_phi_shared(tmp_path):
    adapted(share="global").save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_bert(), tmp_path, low_cpu_mem_usage=True, is_trainable=True)
    assert len({id(delta.theta) for _, _, _, delta in deltas(again)}) == 1


@pytest.mark.parametrize(("share", "groups"), [("matrix", 12), ("type", 6), ("block", 2), ("global", 1), ("frozen", 0)])
def test_who_shares_one_phi(share, groups):
    model = adapted(share=share, exclude_modules=["pooler.dense"])
    assert len(deltas(model)) == 12
    shared = {id(delta.theta) for _, _, _, delta in deltas(model) if isinstance(delta.theta, nn.Parameter)}
    assert len(shared) == groups
    trained = [name for name, _ in model.named_parameters() if name.endswith(".theta")]
    assert len(trained) == groups


@pytest.mark.parametrize("share", SHARES)
def test_shared_phi_stays_shared_in_training(share):
    model = adapted(share=share)
    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-2))
    model(input_ids=token_ids(), labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    layers = {name: delta.c.detach() for name, _, _, delta in deltas(model)}
    query0, query1 = (layers[f"base_model.model.bert.encoder.layer.{n}.attention.self.query"] for n in (0, 1))
    assert torch.equal(query0, query1) == (share in ("type", "global"))
