"""What changes in PEFT's own files, and the experiment for its method_comparison."""

from __future__ import annotations

from typing import Any

PATCHES: dict[str, tuple[tuple[str, str], ...]] = {
    "src/peft/utils/peft_types.py": (
        ("    - DEFT\n", "    - DEFT\n    - LRLORA\n"),
        ('    DEFT = "DEFT"\n', '    DEFT = "DEFT"\n    LRLORA = "LRLORA"\n'),
    ),
    "src/peft/utils/constants.py": (
        (
            "TRANSFORMERS_MODELS_TO_MISS_TARGET_MODULES_MAPPING = ",
            "TRANSFORMERS_MODELS_TO_LRLORA_TARGET_MODULES_MAPPING = "
            "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.copy()\n"
            "TRANSFORMERS_MODELS_TO_MISS_TARGET_MODULES_MAPPING = ",
        ),
    ),
    "src/peft/tuners/__init__.py": (
        ("from .miss import ", "from .lrlora import LRLoraConfig, LRLoraModel\nfrom .miss import "),
        ('    "LNTuningConfig",\n', '    "LNTuningConfig",\n    "LRLoraConfig",\n    "LRLoraModel",\n'),
    ),
    "src/peft/__init__.py": (
        ("    LNTuningConfig,\n", "    LNTuningConfig,\n    LRLoraConfig,\n    LRLoraModel,\n"),
        ('    "LNTuningConfig",\n', '    "LNTuningConfig",\n    "LRLoraConfig",\n    "LRLoraModel",\n'),
    ),
}
"""File: texts, each found exactly once, and what replaces them."""

_FIELDS: dict[str, Any] = {
    "task_type": "CAUSAL_LM", "r": 32, "lora_alpha": 64, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"],
}  # fmt: skip
_FOLDER = "method_comparison/MetaMathQA/experiments/lrlora"
EXPERIMENT: dict[str, dict[str, Any]] = {
    f"{_FOLDER}/llama-3.2-3B-rank32/adapter_config.json": _FIELDS,
    f"{_FOLDER}/llama-3.2-3B-rank32-carrier/adapter_config.json": {**_FIELDS, "carrier": "signs"},
}
"""File: fields of the adapter's configuration; training parameters are the defaults of the comparison."""
