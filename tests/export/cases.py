"""Tiny models of every kind of layer with an adapter on disk, and a Python in which lrlora does not exist."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

import lrlora
from tests.conftest import disturb, tiny_bert, tiny_llama, token_ids

# what a process needs to know that another one has not
NO_LRLORA = """
import sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "lrlora":
            raise ModuleNotFoundError("lrlora does not exist here")

sys.meta_path.insert(0, Wall())
"""

LOADER = """
import json, sys, warnings
warnings.filterwarnings("ignore")
try:
    import lrlora
except ModuleNotFoundError:
    pass
else:
    sys.exit("lrlora can be imported")
import peft, torch, transformers
from safetensors.torch import load_file, save_file

logits = {}
for case in json.load(open(sys.argv[1])):
    model = getattr(transformers, case["loader"]).from_pretrained(case["base"], dtype=torch.float32, **case["options"])
    if case["adapter"]:
        model = peft.PeftModel.from_pretrained(model, case["adapter"])
    with torch.no_grad():
        logits[case["name"]] = model.eval()(**load_file(case["inputs"])).logits
save_file(logits, sys.argv[2])
assert not [name for name in sys.modules if name.split(".")[0] == "lrlora"]
"""


@dataclass
class Case:
    """A base and an adapter on disk, and what the adapted model says.

    Args:
        name: of the case.
        base: folder of the base.
        adapter: folder of the adapter.
        loader: class of transformers for the task.
        options: for the loader, where the base has no head.
        model: the PeftModel.
        inputs: a batch.
        logits: of the adapted model.
    """

    name: str
    base: Path
    adapter: Path
    loader: str
    options: dict[str, Any]
    model: Any
    inputs: dict[str, torch.Tensor]
    logits: torch.Tensor


def make(name: str, folder: Path, **config: Any) -> Case:
    """Build a case: a base as users have it on disk, and an adapter with an update in every layer."""
    base, saved, loader, options, inputs, fields = BUILDERS[name]()
    base_folder, adapter = folder / f"{name}-base", folder / f"{name}-adapter"
    saved.save_pretrained(base_folder, max_shard_size="20KB" if name == "llama" else "5GB")
    if saved is not base:
        # the same numbers as in the file, under the new head
        base = getattr(transformers, loader).from_pretrained(base_folder, dtype=torch.float32, **options)
    model: Any = peft.get_peft_model(base, lrlora.LRLoraConfig(**{"r": 2, "tau": 0.5, **fields, **config}))
    disturb(model)
    trained = [p for n, p in model.named_parameters() if p.requires_grad and "lrlora_" not in n]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.1 * torch.randn_like(parameter))
        logits = model.eval()(**inputs).logits
    model.save_pretrained(adapter)
    config_file = adapter / "adapter_config.json"
    settings = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**settings, "base_model_name_or_path": str(base_folder)}))
    return Case(name, base_folder, adapter, loader, options, model, inputs, logits)


def saved_adapter(base: Any, folder: Path, config: Any = lrlora.LRLoraConfig, **fields: Any) -> torch.Tensor:
    """Save an adapter that is not zero; what the adapted model says."""
    model: Any = peft.get_peft_model(base, config(r=2, task_type="CAUSAL_LM", **fields)).eval()
    disturb(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".modules_to_save." in name or (parameter.requires_grad and name.endswith("bias")):
                parameter.add_(0.1)
        logits = model(input_ids=token_ids()).logits
    model.save_pretrained(folder)
    return logits


def causal(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def says(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=token_ids()).logits


def without_lrlora(folder: Path, cases: list[tuple[Case, Path, Path | None]]) -> dict[str, torch.Tensor]:
    """Logits of checkpoints (and adapters on them), computed in a fresh Python where lrlora cannot be imported."""
    wall = folder / "wall"
    wall.mkdir()
    (wall / "sitecustomize.py").write_text(NO_LRLORA)
    described = []
    for case, base, adapter in cases:
        inputs = folder / f"{case.name}-inputs.safetensors"
        save_file(case.inputs, inputs)
        options = case.options if adapter else {}
        row = {"name": case.name, "base": str(base), "adapter": str(adapter or ""), "loader": case.loader}
        described.append({**row, "options": options, "inputs": str(inputs)})
    (folder / "cases.json").write_text(json.dumps(described))
    (folder / "loader.py").write_text(LOADER)
    ended = subprocess.run(
        [sys.executable, str(folder / "loader.py"), str(folder / "cases.json"), str(folder / "logits.safetensors")],
        env={**os.environ, "PYTHONPATH": str(wall)},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return load_file(folder / "logits.safetensors")


def _bert() -> tuple:
    model = tiny_bert()
    inputs = {"input_ids": token_ids(), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    fields = {"target_modules": "all-linear", "task_type": "SEQ_CLS", "bias": "all"}
    # the file of the bare encoder: no prefix, no head
    return model, model.bert, "AutoModelForSequenceClassification", {"num_labels": 3}, inputs, fields


def _llama() -> tuple:
    model = tiny_llama()
    return model, model, "AutoModelForCausalLM", {}, {"input_ids": token_ids()}, _causal("all-linear")


def _gpt2() -> tuple:
    torch.manual_seed(1)
    config = transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    inputs = {"input_ids": token_ids()}
    # the file of the bare decoder, as gpt2 is on the hub
    return model, model.transformer, "AutoModelForCausalLM", {}, inputs, _causal(["c_attn", "c_fc", "c_proj", "wpe"])


def _vit() -> tuple:
    torch.manual_seed(1)
    config = transformers.ViTConfig(
        image_size=16, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    model = transformers.ViTForImageClassification(config)
    inputs = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))}
    fields = {"target_modules": ["projection", "query"], "modules_to_save": ["classifier"]}
    fields["target_modules"] = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)] + [
        n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "classifier" not in n
    ][:1]
    return model, model, "AutoModelForImageClassification", {}, inputs, fields


def _mixtral() -> tuple:
    torch.manual_seed(1)
    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config)
    fields = _causal(["q_proj"])
    fields["target_parameters"] = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    return model, model, "AutoModelForCausalLM", {}, {"input_ids": token_ids()}, fields


def _gpt_oss() -> tuple:
    torch.manual_seed(1)
    config = transformers.GptOssConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, head_dim=16,
        num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
        layer_types=["full_attention"] * 2,
    )  # fmt: skip
    model = transformers.GptOssForCausalLM(config)
    fields = _causal(["q_proj"])
    fields["target_parameters"] = ["mlp.experts.gate_up_proj"]
    return model, model, "AutoModelForCausalLM", {}, {"input_ids": token_ids()}, fields


def _causal(modules: Any) -> dict[str, Any]:
    return {"target_modules": modules, "task_type": "CAUSAL_LM"}


BUILDERS: dict[str, Callable[[], tuple]] = {
    "bert": _bert,
    "llama": _llama,
    "gpt2": _gpt2,
    "vit": _vit,
    "mixtral": _mixtral,
    "gpt_oss": _gpt_oss,
}
