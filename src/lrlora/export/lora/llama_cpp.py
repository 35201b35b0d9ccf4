"""What llama.cpp would make of an exported LoRA, by its own converter and loader.

From convert_lora_to_gguf.py and src/llama-adapter.h of llama.cpp, as they were in 2026.
"""

from __future__ import annotations

from typing import Any


def why_llama_cpp_differs(config: dict[str, Any]) -> list[str]:
    """Why llama.cpp would compute something else than PEFT, or refuse the LoRA, with what to do; empty if neither.

    A GGUF adapter has one alpha, and llama.cpp scales a layer by alpha over the rank of that layer. It reads no
    `alpha_pattern` and no `use_rslora`.

    Args:
        config: adapter_config.json.

    Example:
        >>> why_llama_cpp_differs({"r": 8, "lora_alpha": 8, "rank_pattern": {}})
        []
    """
    reasons = []
    if ranks := config.get("rank_pattern"):
        low, high = min([config["r"], *ranks.values()]), max([config["r"], *ranks.values()])
        reasons.append(
            f"it reads no alpha_pattern and would multiply each update by alpha / rank, here by up to "
            f"{config['lora_alpha'] / low:g} (ranks {low} to {high}), in silence: pass --uniform, or lrlora merge"
        )
    if (bias := config.get("bias", "none")) != "none":
        reasons.append(f"its converter refuses trained biases (bias={bias!r}): lrlora merge")
    if heads := config.get("modules_to_save"):
        reasons.append(f"its converter refuses modules_to_save ({', '.join(heads)}): lrlora merge")
    if config.get("trainable_token_indices"):
        reasons.append("its converter refuses trained tokens (trainable_token_indices): lrlora merge")
    return reasons


def said_of_llama_cpp(config: dict[str, Any]) -> str | None:
    """The line for the user, of a language model only; None where there is nothing to say."""
    if config.get("task_type") != "CAUSAL_LM":
        return None
    reasons = why_llama_cpp_differs(config)
    return f"llama.cpp would not compute what PEFT does with this LoRA: {'; '.join(reasons)}" if reasons else None
