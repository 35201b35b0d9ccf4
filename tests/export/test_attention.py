"""Adapters on nn.MultiheadAttention: merged into files, and why they are not exported as plain LoRA."""

import copy
import json

import peft
import pytest
import torch
import transformers

from lrlora import InputError, LRLoraConfig
from lrlora.export import export_lora, merge
from tests.conftest import disturb

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """Folders of a SigLIP vision tower and of an adapter on all its linear layers, and what it says."""
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(1)
    config = transformers.SiglipVisionConfig(
        image_size=16, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    base = transformers.SiglipVisionModel(config)
    base.save_pretrained(folder / "base")
    fields = {"r": 2, "carrier": "signs", "target_modules": "all-linear", "task_type": "FEATURE_EXTRACTION"}
    model = peft.get_peft_model(base, LRLoraConfig(**fields)).eval()
    disturb(model)
    model.save_pretrained(folder / "adapter")
    file = folder / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(folder / "base")}))
    return folder, says(model)


@torch.no_grad()
def says(model):
    # PeftModelForFeatureExtraction itself passes arguments on that only text models take
    model = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    return model.eval()(pixel_values=IMAGES).pooler_output


def base_of(folder):
    return transformers.SiglipVisionModel.from_pretrained(folder / "base", dtype=torch.float32)


def test_merged_files_say_the_same(siglip, tmp_path):
    folder, want = siglip
    assert not torch.allclose(says(base_of(folder)), want, atol=1e-3)
    merge(str(folder / "adapter"), tmp_path / "merged")
    merged = transformers.SiglipVisionModel.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(says(merged), want, rtol=1e-4, atol=1e-5)


def test_an_export_is_refused_by_name(siglip, tmp_path):
    with pytest.raises(InputError, match=r"cannot export head\.attention: .* out_proj twice, .* use `lrlora merge`"):
        export_lora(str(siglip[0] / "adapter"), tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_peft_s_lora_adds_the_update_of_out_proj_twice():
    """When this fails PEFT has mended it, and the refusal above can go."""
    model = Attention().eval()
    x = torch.randn(2, 5, 8)
    before = copy.deepcopy(model)
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["inner"], init_lora_weights=False))
    layer = model.base_model.model.inner
    with torch.no_grad():
        before.inner.in_proj_weight.add_(layer.get_delta_weight("default"))
        before.inner.out_proj.weight.add_(2 * layer.base_layer.out_proj.get_delta_weight("default"))
    torch.testing.assert_close(model(x), before(x))


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x)[0]
