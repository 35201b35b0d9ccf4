"""LR-LoRA on the UNet of a diffusion model: diffusers' own add_adapter, training, and a file that comes back.

Run it: python examples/diffusers_unet.py (half a minute on two cores, no network). The UNet is tiny and
random; with UNet2DConditionModel.from_pretrained(..., subfolder="unet") the code is the same.
"""

import tempfile

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

import lrlora
from lrlora.tuner.diffusers import load_lora_adapter

STEPS, BATCH = 30, 8


def tiny_unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, sample_size=8, cross_attention_dim=8, norm_num_groups=4,
        attention_head_dim=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def noise_loss(unet, rows):
    """How far the UNet is from the noise in images that are waves of a random phase."""
    phase = 6.28 * torch.rand(rows, 4, 1, 1)
    images = torch.sin(phase + torch.arange(8.0)).expand(rows, 4, 8, 8)
    noise, times = torch.randn_like(images), torch.randint(0, 1000, (rows,))
    found = unet(scheduler.add_noise(images, noise, times), times, torch.zeros(rows, 1, 8)).sample
    return (found - noise).square().mean()


def held_out_loss(unet):
    torch.manual_seed(1)
    with torch.no_grad():
        return noise_loss(unet.eval(), 256).item()


scheduler, unet = DDPMScheduler(), tiny_unet()
unet.add_adapter(lrlora.LRLoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0", "conv_out"]))
print(f"held-out loss before: {held_out_loss(unet):.4f}")
optimizer = torch.optim.AdamW(lrlora.param_groups(unet, lr=5e-3))
for _ in range(STEPS):
    noise_loss(unet.train(), BATCH).backward()
    optimizer.step()
    optimizer.zero_grad()
after = held_out_loss(unet)
print(f"held-out loss after: {after:.4f}")
with tempfile.TemporaryDirectory() as folder:
    unet.save_lora_adapter(folder)
    again = tiny_unet()
    load_lora_adapter(again, folder)
print(f"loaded: the loss differs by {abs(held_out_loss(again) - after):.1e}")
unet.fuse_lora()
print(f"fused: the loss differs by {abs(held_out_loss(unet) - after):.1e}")
