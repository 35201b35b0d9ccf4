"""What vLLM would say of an exported LoRA when it loads it, by the rules in vLLM's own code.

From vllm/lora/peft_helper.py (`PEFTHelper.validate_legal`), vllm/lora/lora_model.py (`check_unexpected_modules`) and
vllm/lora/utils.py (`parse_fine_tuned_lora_name`), as they were in 2026. vLLM itself is not run here. What depends on
the base's class in vLLM, whether it takes LoRA at all and in which layers, is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from lrlora.export.lora.choose import UNIFORM_RANKS

DEFAULT_MAX_RANK = 16
"""vLLM's max_lora_rank where nobody sets it."""
# every other tensor "is unsupported LoRA weight"; a bias and a head have words of their own below
_TAKEN = re.compile(r".*(\.lora_[AB]\.weight|\.lora_embedding_[AB]|\.(embed_tokens|lm_head)\.base_layer\.weight)")


def why_vllm_refuses(
    config: dict[str, Any], shapes: dict[str, tuple[int, ...]], max_rank: int = DEFAULT_MAX_RANK
) -> list[str]:
    """Why vLLM would reject a LoRA, with what to do; empty where it would load it.

    Per-layer ranks are no reason: an export has alpha = r, and the scale is 1 in versions that read `rank_pattern` and
    in those that do not.

    Args:
        config: adapter_config.json.
        shapes: of the tensors of adapter_model.safetensors.
        max_rank: its max_lora_rank, by default that of a vLLM with default settings.

    Example:
        >>> why_vllm_refuses({"r": 24, "bias": "none"}, {})
        ['rank 24 is above its default max_lora_rank 16: start it with --max-lora-rank 32']
    """
    reasons = []
    if heads := config.get("modules_to_save"):
        only_heads = set(heads) <= {"classifier", "score"}
        who = "versions of vLLM before it served classifiers with LoRA refuse" if only_heads else "it refuses"
        reasons.append(f"{who} modules_to_save ({', '.join(heads)}): lrlora merge, and serve the merged model")
    if (bias := config.get("bias", "none")) != "none":
        reasons.append(f"it refuses trained biases (bias={bias!r}): lrlora merge, or train with --bias none")
    if config.get("use_dora"):
        reasons.append("it has no DoRA: lrlora merge")
    if config.get("trainable_token_indices"):
        reasons.append("it refuses trained tokens (trainable_token_indices), or needs a flag for them: lrlora merge")
    if not reasons and (odd := _not_taken(shapes)):
        reasons.append(f"it knows no tensor such as {odd[0]} ({len(odd)} in all): lrlora merge")
    if convolutions := [name for name, shape in shapes.items() if len(shape) > 2]:
        reasons.append(f"it adapts linear layers and embeddings, not convolutions ({convolutions[0]}): lrlora merge")
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    if rank > max_rank:
        fits = [allowed for allowed in UNIFORM_RANKS if allowed >= rank]
        advice = (
            f"start it with --max-lora-rank {fits[0]}" if fits else "pass a lower --energy or --rank, or lrlora merge"
        )
        limit = f"its default max_lora_rank {DEFAULT_MAX_RANK}" if fits else f"{UNIFORM_RANKS[-1]}, the most it takes"
        reasons.append(f"rank {rank} is above {limit}: {advice}")
    return reasons


def said_of_vllm(config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> str | None:
    """The line for the user: what `why_vllm_refuses` gives; None where there is nothing to say."""
    reasons = why_vllm_refuses(config, shapes)
    return f"vLLM would not load this LoRA as it is: {'; '.join(reasons)}" if reasons else None


def _not_taken(shapes: Iterable[str]) -> list[str]:
    return [name for name in shapes if not _TAKEN.fullmatch(name)]
