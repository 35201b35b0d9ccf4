"""nn.MultiheadAttention: adapted it is the attention whose weights are W0 + dW, in every mode torch computes it in."""

import copy

import peft
import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import nn

from lrlora import InputError, LRLoraConfig, deltas, hotswap_adapter, layer_ranks
from lrlora.tuner.explain import computation_of
from tests.conftest import disturb, rel_rms

NAMES = ["attention", "attention.base_layer.out_proj"]


class Pooling(nn.Module):
    """Attention of a learned vector to a sequence, as in SigLIP."""

    def __init__(self, **fields):
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **fields)

    def forward(self, x):
        return self.attention(self.probe.repeat(len(x), 1, 1), x, x, need_weights=False)[0]


def adapted(base=None, **fields):
    """An adapted model moved away from its start, and the base as it was."""
    torch.manual_seed(0)
    base = Pooling() if base is None else base
    before = copy.deepcopy(base).eval()
    model = get_peft_model(base, LRLoraConfig(**{"r": 2, "target_modules": ["attention"], **fields})).eval()
    disturb(model)
    return model, before


def changed(before, model):
    """The base with dW added to its weights."""
    with torch.no_grad():
        for name, layer, adapter, _ in deltas(model):
            path = name.removeprefix("base_model.model.").replace(".base_layer", "")
            getattr(before.get_submodule(path), layer.parameter_name).add_(layer.get_delta_weight(adapter))
    return before


X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))


def test_a_fresh_adapter_changes_nothing():
    base = Pooling().eval()
    want = base(X)
    model = get_peft_model(base, LRLoraConfig(r=2, target_modules=["attention"])).eval()
    torch.testing.assert_close(model(X), want, rtol=0, atol=0)
    assert [row.layer for row in layer_ranks(model)] == NAMES
    assert [tuple(layer.get_delta_weight("default").shape) for _, layer, _, _ in deltas(model)] == [(24, 8), (8, 8)]


@pytest.mark.parametrize("fields", [{}, {"bias": False}, {"add_bias_kv": True}], ids=str)
@pytest.mark.parametrize("is_training", [True, False])
def test_output_and_gradients_are_those_of_the_changed_weights(is_training, fields):
    model, before = adapted(Pooling(**fields), phi="residual")
    truth = changed(before, model).train(is_training)
    model.train(is_training)
    with torch.no_grad():
        torch.testing.assert_close(model(X), truth(X))
    out = model(X)
    direction = torch.randn_like(out)
    (out * direction).sum().backward()
    (truth(X) * direction).sum().backward()
    gradients = {24: truth.attention.in_proj_weight.grad, 8: truth.attention.out_proj.weight.grad}
    for _, layer, name, delta in deltas(model):
        delta.theta.data.requires_grad_(False)
        factors = [delta.A, delta.B, delta.theta]
        dW = layer.made(name, type(delta).uncached_update)
        wanted = torch.autograd.grad(dW, factors, gradients[layer.out_features])
        for ours, theirs in zip(factors, wanted, strict=True):
            assert theirs.norm() > 0
            assert rel_rms(ours.grad, theirs) < 1e-4
    frozen = [p for n, p in model.named_parameters() if "lrlora_" not in n]
    assert frozen and all(p.grad is None for p in frozen)


def test_merged_unmerged_saved_loaded_swapped(tmp_path):
    model, before = adapted()
    fresh, weights = copy.deepcopy(before), copy.deepcopy(before).attention
    model.save_pretrained(tmp_path)
    # in the same mode: torch has another kernel for what needs no gradients
    with torch.no_grad():
        again = PeftModel.from_pretrained(copy.deepcopy(fresh), tmp_path).eval()(X)
        torch.testing.assert_close(model(X), again, rtol=0, atol=0)
    want = model(X)
    model.merge_adapter()
    torch.testing.assert_close(model(X), want)
    attention = model.base_model.model.attention.get_base_layer()
    assert not torch.equal(attention.in_proj_weight, weights.in_proj_weight)
    with model.disable_adapter():
        # merged weights are taken out again
        torch.testing.assert_close(model(X), fresh(X))
    assert torch.equal(attention.in_proj_weight, weights.in_proj_weight)
    assert torch.equal(attention.out_proj.weight, weights.out_proj.weight)
    torch.testing.assert_close(model(X), want, rtol=0, atol=0)

    other, _ = adapted(copy.deepcopy(fresh), r=3, rank_pattern={"attention": 4})
    hotswap_adapter(other, str(tmp_path))
    torch.testing.assert_close(other(X), want, rtol=0, atol=0)
    with model.disable_adapter():
        torch.testing.assert_close(model(X), fresh(X))

    merged = model.merge_and_unload()
    assert type(merged.attention) is nn.MultiheadAttention
    assert type(merged.attention.out_proj) is type(weights.out_proj)
    assert merged.state_dict().keys() == fresh.state_dict().keys()
    torch.testing.assert_close(merged(X), want)


def test_several_adapters_add_up_and_are_deleted():
    model, before = adapted()
    first = model(X)
    model.add_adapter("other", LRLoraConfig(r=3, phi="residual", target_modules=["attention"]))
    disturb(model, "other")
    model.base_model.set_adapter(["default", "other"])
    with torch.no_grad():
        torch.testing.assert_close(model(X), changed(copy.deepcopy(before), model)(X))
    model.set_adapter("default")
    torch.testing.assert_close(model(X), first, rtol=0, atol=0)
    model.delete_adapter("other")
    assert {adapter for _, _, adapter, _ in deltas(model)} == {"default"}
    restored = model.unload()
    torch.testing.assert_close(restored.state_dict(), before.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(restored(X), before(X))


@pytest.mark.parametrize("targets", [["self_attn"], ["linear1", "linear2"], "all-linear"])
@pytest.mark.parametrize("has_gradients", [True, False])
def test_torch_s_kernel_for_whole_blocks_does_not_pass_adapters_by(targets, has_gradients):
    base = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True))
    model, before = adapted(base, target_modules=targets)
    with torch.set_grad_enabled(has_gradients):
        got = model(X)
        assert not torch.allclose(got, before(X), atol=1e-3)
        torch.testing.assert_close(got, changed(before, model)(X), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.merge_and_unload()(X), got, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_an_encoder_with_padding():
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model, before = adapted(nn.Sequential(nn.TransformerEncoder(block, 2)), target_modules="all-linear")
    padding = torch.arange(5) >= torch.tensor([[5], [3], [4]])
    with torch.no_grad():
        want = changed(before, model)[0](X, src_key_padding_mask=padding)
        got = model.base_model.model[0](X, src_key_padding_mask=padding)
    torch.testing.assert_close(got[~padding], want[~padding], rtol=1e-4, atol=1e-5)


def test_the_head_of_siglip():
    torch.manual_seed(0)
    config = transformers.SiglipVisionConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    base = transformers.SiglipVisionModel(config)
    images = torch.randn(2, 3, 8, 8)
    plain = base.eval()(images).pooler_output
    model, before = adapted(base, target_modules="all-linear")
    assert [name for name, *_ in deltas(model) if "head.attention" in name]
    got = model(images).pooler_output
    assert not torch.allclose(got, plain, atol=1e-4)
    torch.testing.assert_close(got, changed(before, model)(images).pooler_output, rtol=1e-4, atol=1e-5)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = (model.train()(images).pooler_output - 1).square().mean()
        loss.backward()
        assert all(p.grad is not None and p.grad.norm() > 0 for p in model.parameters() if p.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_what_it_cannot_do_is_refused():
    with pytest.raises(InputError, match=r"lora_dropout=0.1 acts on the input of an update"):
        get_peft_model(Pooling(), LRLoraConfig(target_modules=["attention"], lora_dropout=0.1))
    with pytest.raises(InputError, match=r"attention\.out_proj.*name the whole attention \(attention\)"):
        get_peft_model(Pooling(), LRLoraConfig(target_modules=["out_proj"]))
    model, _ = adapted(target_modules=["attention", "out_proj"])
    assert len(deltas(model)) == 2
    with pytest.raises(InputError, match="does not support mixed adapter batches"):
        model(X, adapter_names=["default"] * 3)
    with pytest.raises(TypeError, match="MultiheadAttention"):
        peft.convert_to_lora(model, rank=2)
    with pytest.warns(UserWarning, match="in_proj_weight and out_proj is rounded to torch.bfloat16"):
        get_peft_model(Pooling().bfloat16(), LRLoraConfig(target_modules=["attention"]))


def test_it_is_explained():
    model, _ = adapted()
    assert computation_of(model)[0].startswith("2 layers: the module computes with W0 + dW")
