"""Quantised bases on a CPU: bitsandbytes 8-bit and 4-bit, torchao weight-only; train, save, load, merge, unmerge."""

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from lrlora import InputError, LRLoraConfig, layer_ranks, param_groups
from lrlora.tuner import deltas
from lrlora.tuner.explain import computation_of
from tests.conftest import rel_rms, tiny_llama, token_ids

# what the quantisation libraries say about themselves
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*compute_dtype:UserWarning"),
]


def quantisation(name: str):
    """A quantisation config of transformers."""
    if name.startswith("bnb"):
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
        if name == "bnb 8bit":
            return transformers.BitsAndBytesConfig(load_in_8bit=True)
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    if name == "torchao int4":
        granularity = pytest.importorskip("torchao.quantization.granularity").PerGroup(32)
        return transformers.TorchAoConfig(
            quant_type=torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=granularity)
        )
    return transformers.TorchAoConfig(quant_type=torchao.Int8WeightOnlyConfig(version=2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama, wide enough for blocks of 64."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def base(folder, name: str):
    return LlamaForCausalLM.from_pretrained(
        folder, quantization_config=quantisation(name), dtype=torch.float32, device_map="cpu"
    )


NAMES = ["bnb 8bit", "bnb 4bit", "torchao int8", "torchao int4"]


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_saves_loads_merges_and_unmerges(folder, tmp_path, name):
    config = LRLoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base(folder, name), config)
    assert len(deltas(model)) == 6
    assert computation_of(model)[0].startswith("6 layers: base(x) + x dW^T, because W0 is quantised")
    ids = token_ids()
    plain = model(ids).logits.detach()
    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-2))
    losses = []
    for _ in range(6):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert {delta.A.dtype for *_, delta in deltas(model)} == {torch.float32}
    assert all(row.relative_norm > 0 for row in layer_ranks(model))
    model.eval()
    with torch.no_grad():
        trained = model(ids).logits
        assert not torch.allclose(trained, plain)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(base(folder, name), tmp_path).eval()
        torch.testing.assert_close(again(ids).logits, trained)
        # saving makes bitsandbytes unpack and pack its weights again, which changes them a little on some CPUs
        before = model(ids).logits
        with pytest.warns(UserWarning, match=r"weights, which rounds: the error is \d+% of the norm of the update"):
            model.merge_adapter()
        # 4 bits cannot hold much of a small update; 8 bits can
        assert (model(ids).logits - trained).abs().max() < (1.0 if "4" in name else 0.3)
        model.unmerge_adapter()
        torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=0)


def test_a_weight_that_was_evaluated_is_read_as_it_is(folder):
    # on some CPUs bitsandbytes packs its weights when they are evaluated, and PEFT reads packed weights as noise
    model = get_peft_model(
        base(folder, "bnb 4bit"), LRLoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    layer = deltas(model)[0][1]
    before = layer.float_weight().clone()
    model.eval()
    with torch.no_grad():
        model(token_ids())
    # bitsandbytes rounds the scales to bfloat16 on its way
    assert rel_rms(layer.float_weight(), before.double()) < 0.01


def test_an_integer_weight_that_no_backend_knows_is_refused():
    class Odd(torch.nn.Linear):
        pass

    model = torch.nn.Sequential()
    odd = Odd(8, 8)
    odd.weight = torch.nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    model.add_module("odd", odd)
    with pytest.raises(InputError, match=r"its weight is quantised .*int8"):
        get_peft_model(model, LRLoraConfig(target_modules=["odd"]))


class PackedLinear(torch.nn.Module):
    """As GPTQ's and AWQ's layers: 4 bits a weight, eight of them in an integer, read only inside its own product."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scales = torch.nn.Buffer(linear.weight.detach().abs().amax(1, keepdim=True) / 7)
        levels = (linear.weight.detach() / self.scales).round().clamp(-7, 7).int() + 8
        places = 4 * torch.arange(8, dtype=torch.int32)
        self.qweight = torch.nn.Buffer((levels.unflatten(1, (-1, 8)) << places).sum(-1, dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = 4 * torch.arange(8, dtype=torch.int32)
        levels = ((self.qweight[..., None] >> places) & 15).flatten(1) - 8
        return x @ (levels * self.scales).T


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_weight_that_cannot_be_read_back_is_trained_on_but_not_merged_into(tmp_path, monkeypatch, method):
    # gptqmodel, which has the real layers, does not install on every machine; what PEFT makes of them is the same
    from peft.utils.quantization_utils import ForwardOnlyQuantizationBackend

    def resolve(layer, model):
        return ForwardOnlyQuantizationBackend(method) if isinstance(layer, PackedLinear) else None

    monkeypatch.setattr("lrlora.tuner.targets.resolve_quantization", resolve)

    def packed() -> torch.nn.Module:
        model = tiny_llama()
        for block in model.model.layers:
            block.self_attn.q_proj = PackedLinear(block.self_attn.q_proj)
        return model

    model = get_peft_model(packed(), LRLoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    ids = token_ids()
    plain = model(ids).logits
    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-2))
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        trained = model(ids).logits
        assert not torch.allclose(trained, plain)
        model.save_pretrained(tmp_path)
        torch.testing.assert_close(PeftModel.from_pretrained(packed(), tmp_path).eval()(ids).logits, trained)
        rows = layer_ranks(model)
        assert [row.relative_norm for row in rows] == [None, None]
        assert all(row.stable_rank >= 1 for row in rows)
        for merge in (model.merge_adapter, model.merge_and_unload):
            with pytest.raises(TypeError, match=f"quantised by {method}: it cannot be read back; use the adapter"):
                merge()
        torch.testing.assert_close(model(ids).logits, trained, rtol=0, atol=0)
