"""Every type of layer: adapted it changes nothing at first, then does what a layer with W0 + dW would do."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from lrlora import InputError, LRLoraConfig, layer_ranks
from lrlora.method import update as definition
from lrlora.tuner.theta import GAIN
from tests.conftest import disturb, rel_rms, tiny_llama, token_ids


class Scaled(nn.Embedding):
    """As Gemma's: multiplies what it looks up."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("embed_scale", torch.tensor(3.0))

    def forward(self, x):
        return super().forward(x) * self.embed_scale


IDS = torch.tensor([[1, 4, 1], [7, 0, 4]])
LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), torch.randn(3, 6)),
    "linear without bias": (lambda: nn.Linear(6, 5, bias=False), torch.randn(2, 3, 6)),
    "Conv1D": (lambda: Conv1D(5, 6), torch.randn(3, 6)),
    "embedding": (lambda: nn.Embedding(9, 5), IDS),
    "embedding with padding": (lambda: nn.Embedding(9, 5, padding_idx=0), IDS),
    "scaled embedding": (lambda: Scaled(9, 5), IDS),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), torch.randn(2, 4, 7)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), torch.randn(2, 4, 7, 7)),
    "Conv2d circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), torch.randn(2, 4, 7, 7)),
    "Conv2d in groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), torch.randn(2, 4, 7, 7)),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 2), torch.randn(2, 2, 4, 4, 4)),
}


def adapted(name: str, **fields):
    """A model of one layer, adapted and moved away from its start, its input, and the layer as it was."""
    make, x = LAYERS[name]
    torch.manual_seed(2)
    model = nn.Sequential()
    model.add_module("layer", make())
    before = copy.deepcopy(model.layer)
    config = LRLoraConfig(**{"r": 2, "target_modules": ["layer"], **fields})
    return get_peft_model(model, config).eval(), x, before


@pytest.mark.parametrize("name", LAYERS)
def test_a_fresh_adapter_changes_nothing(name):
    model, x, before = adapted(name)
    torch.testing.assert_close(model(x), before(x), rtol=0, atol=0)


@pytest.mark.parametrize("phi", ["sinc", "residual", "sine"])
@pytest.mark.parametrize("name", LAYERS)
def test_it_is_the_layer_with_another_weight(name, phi):
    model, x, before = adapted(name, phi=phi)
    disturb(model)
    layer = model.base_model.model.layer
    delta = layer.delta("default")
    matrix = definition.delta_weight(
        delta.A, delta.B, delta.c, delta.tau, layer.scaling["default"] * delta.gain, phi=phi
    )
    dW = layer.get_delta_weight("default")
    assert dW.shape == before.weight.shape
    torch.testing.assert_close(dW.flatten().sort().values, matrix.flatten().sort().values)
    with torch.no_grad():
        before.weight.add_(dW)
    torch.testing.assert_close(model(x), before(x))
    with torch.no_grad():
        torch.testing.assert_close(model(x), before(x))


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_the_changed_weight(name):
    model, x, before = adapted(name)
    disturb(model)
    layer = model.base_model.model.layer
    delta = layer.delta("default")
    out = model(x)
    direction = torch.randn_like(out)
    (out * direction).sum().backward()
    with torch.no_grad():
        before.weight.add_(layer.get_delta_weight("default"))
    (before(x) * direction).sum().backward()
    A, B, c = (t.detach().clone().requires_grad_() for t in (delta.A, delta.B, delta.c))
    dW = layer.to_layout(definition.delta_weight(A, B, c, delta.tau, layer.scaling["default"], phi="sinc"))
    weight_gradient = before.weight.grad
    if name == "embedding with padding":
        # a padding row of the base gets no gradient; the adapter, like LoRA's, has no padding row
        assert (IDS == 0).any()
        weight_gradient = torch.zeros_like(before.weight).index_put_((x.flatten(),), direction.flatten(0, 1), True)
    found = (delta.A.grad, delta.B.grad, delta.theta.grad / GAIN)
    for ours, truth in zip(found, torch.autograd.grad(dW, (A, B, c), weight_gradient), strict=True):
        assert rel_rms(ours, truth) < 1e-5


@pytest.mark.parametrize("name", LAYERS)
def test_saved_loaded_merged_unmerged(name, tmp_path):
    model, x, before = adapted(name)
    disturb(model)
    out = model(x)
    model.save_pretrained(tmp_path)
    base = nn.Sequential()
    base.add_module("layer", copy.deepcopy(before))
    assert torch.equal(PeftModel.from_pretrained(base, tmp_path).eval()(x), out)
    model.merge_adapter()
    torch.testing.assert_close(model(x), out)
    model.unmerge_adapter()
    assert torch.equal(model.base_model.model.layer.base_layer.weight, before.weight)
    assert len(layer_ranks(model)) == 1
    merged = model.merge_and_unload()
    assert type(merged.layer) is type(before)
    torch.testing.assert_close(merged(x), out)


@pytest.mark.parametrize(
    ("module", "word"),
    [
        (nn.Bilinear(4, 4, 4), "Bilinear; supported: torch.nn.Linear, Embedding"),
        (nn.ConvTranspose2d(4, 4, 1), "ConvTranspose2d; supported"),
        (nn.LSTM(4, 4), "LSTM"),
        (nn.Embedding(4, 4, max_norm=1.0), "max_norm"),
        (nn.MultiheadAttention(4, 2, kdim=3), "kdim or vdim differs"),
        (nn.EmbeddingBag(4, 4), "EmbeddingBag"),
    ],
)
def test_what_cannot_be_adapted_is_refused_by_name(module, word):
    model = nn.Sequential()
    model.add_module("odd", module)
    with pytest.raises(InputError, match=f"cannot adapt odd.*{word}.*exclude_modules"):
        get_peft_model(model, LRLoraConfig(target_modules=["odd"]))


class TestMixedBatch:
    def model(self):
        fields = {"r": 2, "target_modules": ["q_proj", "down_proj", "embed_tokens"], "task_type": "CAUSAL_LM"}
        model = get_peft_model(tiny_llama(), LRLoraConfig(**fields))
        model.add_adapter("other", LRLoraConfig(**fields, phi="residual"))
        disturb(model)
        return model.eval()

    def test_each_row_gets_its_adapter(self):
        model, ids = self.model(), token_ids(4)
        alone = {}
        for name in ("default", "other"):
            model.set_adapter(name)
            alone[name] = model(ids).logits
        with model.disable_adapter():
            alone["__base__"] = model(ids).logits
        names = ["other", "__base__", "default", "other"]
        mixed = model(ids, adapter_names=names).logits
        for row, name in enumerate(names):
            torch.testing.assert_close(mixed[row], alone[name][row], rtol=1e-4, atol=1e-5)

    def test_generation_with_beams(self):
        model, ids = self.model(), token_ids(2)
        words = model.generate(
            input_ids=ids, adapter_names=["default", "other"], num_beams=2, max_new_tokens=4, do_sample=False
        )
        for row, name in enumerate(["default", "other"]):
            model.set_adapter(name)
            alone = model.generate(input_ids=ids, num_beams=2, max_new_tokens=4, do_sample=False)
            assert torch.equal(words[row], alone[row])

    def test_what_cannot_be_is_refused(self):
        model, ids = self.model(), token_ids(2)
        with pytest.raises(InputError, match="no adapter named typo; there are: default, other"):
            model(ids, adapter_names=["default", "typo"])
        with pytest.raises(ValueError, match=r"Length of `adapter_names` should be the same .*, but got 1 and 2"):
            model(ids, adapter_names=["default"])
        model.train()
        with pytest.raises(InputError, match=r"in training mode; call model\.eval"):
            model(ids, adapter_names=["default", "other"])
