"""Tiny models of diffusers, what they are asked, and pipelines around them."""

from __future__ import annotations

from typing import Any

import torch


def unet(width: int = 8) -> Any:
    """The UNet of Stable Diffusion, of two blocks."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(width, 2 * width), layers_per_block=1, sample_size=8, cross_attention_dim=8,
        norm_num_groups=4, attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def flux(width: int = 16) -> Any:
    """The transformer of Flux, of one block of each kind."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=width, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=[width // 4, width // 4, width // 2],
    )  # fmt: skip


def inputs_of(model: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    if type(model).__name__ == "UNet2DConditionModel":
        return {"sample": noise(1, 4, 8, 8), "timestep": torch.tensor([3]), "encoder_hidden_states": noise(1, 5, 8)}
    return {
        "hidden_states": noise(1, 16, 4), "encoder_hidden_states": noise(1, 5, 16), "timestep": torch.tensor([0.3]),
        "pooled_projections": noise(1, 16), "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3),
    }  # fmt: skip


@torch.no_grad()
def says(model: Any) -> torch.Tensor:
    return model.eval()(**inputs_of(model)).sample


def pipeline_of(model: Any) -> Any:
    """A pipeline with this model and nothing else that computes."""
    import diffusers

    nothing: dict[str, Any] = {"vae": None, "text_encoder": None, "tokenizer": None}
    if type(model).__name__ == "UNet2DConditionModel":
        nothing |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return diffusers.StableDiffusionPipeline(unet=model, scheduler=diffusers.DDPMScheduler(), **nothing)
    nothing |= {"text_encoder_2": None, "tokenizer_2": None}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.FluxPipeline(transformer=model, scheduler=scheduler, **nothing)
