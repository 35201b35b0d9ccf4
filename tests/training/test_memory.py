"""The memory that a run is said to take: against a model that is loaded, and against the machine."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM

from lrlora.data import load_task
from lrlora.saved.base import BaseOptions
from lrlora.saved.load import bare_base, load_base
from lrlora.saved.tokens import load_tokenizer
from lrlora.training import TrainConfig
from lrlora.training.memory import Machine, bytes_of_base, estimate, machine, said_of_memory
from lrlora.training.model import build
from tests.training.bases import QUIET, WAYS, decoder, need, sums

pytestmark = QUIET


def held(base: torch.nn.Module) -> int:
    """Bytes that a loaded model's tensors take, with the scales of quantised ones."""
    total = sum(b.numel() * b.element_size() for b in base.buffers())
    for p in base.parameters():
        inner = getattr(p, "qdata", None)
        if inner is not None:
            total += inner.numel() * inner.element_size() + p.scale.numel() * p.scale.element_size()
            continue
        total += p.numel() * p.element_size()
        state = getattr(p, "quant_state", None)
        if state is not None:
            total += state.absmax.numel() + state.state2.absmax.numel() * 4
    return total


@pytest.mark.parametrize("way", WAYS)
def test_the_base_takes_what_is_said(embedded_encoder, tmp_path, way):
    need(way)
    folder = str(decoder(tmp_path / "base", embedded_encoder))
    flags = dict(zip(WAYS[way][::2], WAYS[way][1::2], strict=True))
    options = BaseOptions.of({name.removeprefix("--"): value for name, value in flags.items()})
    bare = bare_base(folder, AutoModelForCausalLM, options, {})
    assert {p.device.type for p in bare.parameters()} == {"meta"} and bare.written_dtype == "float32"
    itemsize = 4 if options.dtype == "auto" else getattr(torch, options.dtype).itemsize
    loaded = load_base(folder, "CAUSAL_LM", None, options)
    assert bytes_of_base(bare, options, itemsize) == pytest.approx(held(loaded), rel=0.01)


def test_the_parts_are_those_of_the_model_that_is_trained(embedded_encoder, tmp_path, capsys):
    folder = str(decoder(tmp_path / "base", embedded_encoder))
    config = TrainConfig.of(model=folder, data=str(sums(tmp_path / "rows.jsonl")), r=4, batch_size=3)
    task, tokenizer = load_task(config.data_source()), load_tokenizer(folder)
    drawn = torch.get_rng_state()
    model, _ = build(config, task)
    assert "lrlora: memory: about " in capsys.readouterr().err
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    torch.set_rng_state(drawn)
    bare = bare_base(folder, AutoModelForCausalLM, config.base_options, {})
    found = estimate(bare, config, task, tokenizer, "CAUSAL_LM", False)
    # a line about memory changes nothing of what a seed gives
    assert torch.equal(torch.get_rng_state(), drawn)
    assert (found.adapter, found.gradients, found.optimizer) == (trained, trained, 2 * trained)
    assert found.rows == 3 and 8 < found.tokens < 64
    parts = ("base", "adapter", "gradients", "optimizer", "activations", "held")
    assert found.total == sum(getattr(found, name) for name in parts)
    less = dataclasses.replace(config, gradient_checkpointing=True)
    bare = bare_base(folder, AutoModelForCausalLM, config.base_options, {})
    assert estimate(bare, less, task, tokenizer, "CAUSAL_LM", False).activations < found.activations

    there = machine(config.base_options)
    assert there is None or 0 < there.free <= there.all
    assert len(said_of_memory(found, config.base_options, there)) == 1
    line, warning = said_of_memory(found, config.base_options, Machine(10**6, 10**7, "this machine"))
    assert "this machine has 1 MB free of 10 MB" in line and "3 rows of" in line
    assert warning.startswith("warning: the weights need ") and "--quantization bnb-4bit" in warning
