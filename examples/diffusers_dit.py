"""LR-LoRA on a diffusion transformer in a pipeline: two adapters, their weights, and the pipeline's own file.

Run it: python examples/diffusers_dit.py (half a minute on two cores, no network). The transformer is tiny and random.
"""

import tempfile

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from peft import get_peft_model_state_dict

import lrlora
from lrlora.tuner.diffusers import load_lora_adapter


def tiny_pipeline():
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    return FluxPipeline(FlowMatchEulerDiscreteScheduler(), *[None] * 5, transformer)


def flow_loss(transformer, rows, sign):
    """Rectified flow from noise to images that are one wave or, by the sign, the other."""
    images = sign * torch.sin(torch.arange(16.0)).reshape(1, 16, 1).expand(rows, 16, 4)
    noise, t = torch.randn(rows, 16, 4), torch.rand(rows)
    given = {"encoder_hidden_states": torch.zeros(rows, 1, 16), "pooled_projections": torch.zeros(rows, 16)}
    places = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(1, 3)}
    found = transformer(torch.lerp(images, noise, t[:, None, None]), timestep=t, **given, **places).sample
    return (found - noise + images).square().mean()


def held_out_loss(transformer, sign=1):
    torch.manual_seed(1)
    with torch.no_grad():
        return flow_loss(transformer.eval(), 128, sign).item()


transformer = tiny_pipeline().transformer
print(f"held-out loss before: {held_out_loss(transformer):.4f}")
for name, sign in (("wave", 1), ("inverse", -1)):
    transformer.add_adapter(lrlora.LRLoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"]), name)
    optimizer = torch.optim.AdamW(lrlora.param_groups(transformer, lr=5e-3))
    for _ in range(20):
        flow_loss(transformer.train(), 8, sign).backward()
        optimizer.step()
        optimizer.zero_grad()
for weights in ([1.0, 0.0], [0.5, 0.5], [0.0, 1.0]):
    transformer.set_adapters(["wave", "inverse"], weights)
    print(f"weights {weights}: loss {held_out_loss(transformer):.4f}")
with tempfile.TemporaryDirectory() as folder:
    tensors = get_peft_model_state_dict(transformer, adapter_name="wave")
    config = transformer.peft_config["wave"].to_dict()
    FluxPipeline.save_lora_weights(folder, tensors, transformer_lora_adapter_metadata=config)
    again = tiny_pipeline()
    load_lora_adapter(again.transformer, folder, prefix="transformer")
transformer.set_adapters("wave")
print(f"loaded: the loss differs by {abs(held_out_loss(again.transformer) - held_out_loss(transformer)):.1e}")
