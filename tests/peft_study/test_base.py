"""The base of a cell: its first blocks, and for facts an adapter with a frozen head."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import CLIPConfig, CLIPForImageClassification, SwinConfig, SwinForImageClassification

from lrlora import InputError
from peft_study.base import blocks_of, keep_blocks
from peft_study.cell import Bench
from peft_study.estimate import estimates
from peft_study.plan import cell_of, digests_of, final_cells
from tests.conftest import tiny_bert, tiny_llama
from tests.peft_study.small_facts import EVERY, LORA, OPEN, facts_study, run_one

_SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize("arm", EVERY, ids=lambda arm: arm.name)
def test_every_arm_adapts_the_blocks_of_an_encoder_and_leaves_its_head_alone(tiny_encoder, arm):
    study = facts_study(tiny_encoder, arms=(arm,), blocks=1, task={"pooling": "mean"})
    row = run_one(study)
    assert row.metric == "bits"
    assert row.value == row.metrics["bits"] < 12
    assert row.metrics["bits_per_parameter"] == row.value / row.trainable_parameters
    assert estimates(study)[0].trainable_parameters == row.trainable_parameters
    if arm.name == "lora":
        # q, k, v, o of 32 x 32; 32 to 48 and back; nothing of a second block, a pooler or the head
        assert row.trainable_parameters == 2 * (4 * 64 + 2 * 80)
    if arm.name == "full":
        assert row.total_parameters - row.trainable_parameters == 4 * 32 + 4


@pytest.mark.parametrize("arm", (LORA, OPEN, EVERY[5], EVERY[6]), ids=lambda arm: arm.name)
def test_arms_on_a_causal_model(tiny_decoder, arm):
    study = facts_study(tiny_decoder, arms=(arm,), blocks=1)
    row = run_one(study)
    # the vocabulary of a fresh model is far larger than four answers
    assert row.metric == "bits"
    assert row.value < 0
    assert estimates(study)[0].trainable_parameters == row.trainable_parameters


def test_blocks_are_the_first_ones_and_part_of_what_a_cell_is_known_by(tiny_encoder):
    for model, name in ((tiny_bert(), "bert.encoder.layer"), (tiny_llama(), "model.layers")):
        assert blocks_of(model) == name
        first, ids = model.get_submodule(f"{name}.0"), torch.tensor([[3, 4, 5]])
        before = model(ids).logits
        keep_blocks(model, 2)
        assert torch.equal(model(ids).logits, before)
        keep_blocks(model, 1)
        assert [*model.get_submodule(name)] == [first]
        assert model.config.num_hidden_layers == 1
        assert not torch.equal(model(ids).logits, before)
        with pytest.raises(InputError, match=r"blocks asks for the first 2 blocks of \w+, which has 1"):
            keep_blocks(model, 2)
    # of a model with two towers the blocks are those of the tower that reads images; 3 and 2 of them tell them apart
    towers = CLIPConfig(
        vision_config={**_SMALL, "num_hidden_layers": 3, "image_size": 16, "patch_size": 8},
        text_config={**_SMALL, "num_hidden_layers": 2, "vocab_size": 20},
    )
    images = CLIPForImageClassification(towers)
    assert blocks_of(images) == "vision_model.encoder.layers"
    keep_blocks(images, 1)
    assert (towers.vision_config.num_hidden_layers, towers.text_config.num_hidden_layers) == (1, 2)
    assert images(torch.zeros(1, 3, 16, 16)).logits.shape == (1, 2)
    stages = SwinForImageClassification(SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1], num_heads=[1]))
    with pytest.raises(
        InputError, match="needs one list of its blocks, and has stages of several widths; leave blocks"
    ):
        keep_blocks(stages, 1)
    shared = torch.nn.Module()
    shared.config = tiny_bert().config  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputError, match="needs one list of its 2 blocks, and has none; leave blocks out"):
        keep_blocks(shared, 1)
    study = facts_study(tiny_encoder, blocks=3)
    cell = final_cells(study, digests_of(study), LORA, study.tasks[0], 1e-3)[0]
    row = Bench(study).run(cell)
    assert (row.status, "asks for the first 3 blocks" in row.reason) == ("failed", True)
    digests = digests_of(study)
    prints = {
        cell_of(dataclasses.replace(study, blocks=n), digests, LORA, study.tasks[0], "final", 1e-3, 0).fingerprint
        for n in (None, 1, 2)
    }
    assert len(prints) == 3
