"""LR-LoRA in axolotl: `plugins: [lrlora.integrations.axolotl.LRLoraPlugin]` and `adapter: lrlora` in its YAML.

What axolotl has a key for (`lora_r`, `lora_target_linear`, `peft_use_rslora`, ...) keeps that key. What it has none
for, phi above all, is under `lrlora:`. axolotl drops a key that it does not know without a word; with `adapter: lrlora`
one that looks like an adapter's is refused.
"""

from __future__ import annotations

from typing import Any, get_type_hints

import peft
from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator
from transformers import TrainerCallback

from lrlora.errors import InputError, meant
from lrlora.integrations.fields import check_names, config_of_loaded, fields_without, refuse_without
from lrlora.ranks.record import RankCallback
from lrlora.tuner.callback import TauCallback
from lrlora.tuner.config import LRLoraConfig
from lrlora.tuner.lora_fields import NOT_HERE, default_of

try:
    from axolotl.integrations.base import AdapterCapabilities, BasePlugin  # pyright: ignore[reportMissingImports]
    from axolotl.loaders.adapter import find_all_linear_names  # pyright: ignore[reportMissingImports]
    from axolotl.utils.logging import get_logger  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    refuse_without("axolotl", "axolotl", error)

_LOG = get_logger(__name__)

FIELD_OF_KEY = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "lora_modules_to_save": "modules_to_save",
    "lora_rank_pattern": "rank_pattern",
    "lora_alpha_pattern": "alpha_pattern",
    "lora_fan_in_fan_out": "fan_in_fan_out",
    "peft_layers_to_transform": "layers_to_transform",
    "peft_layers_pattern": "layers_pattern",
    "peft_use_rslora": "use_rslora",
    "peft_init_lora_weights": "init_weights",
    "peft_trainable_token_indices": "trainable_token_indices",
}
"""axolotl's own keys, and the fields of LRLoraConfig that they set."""

_KERNEL = "axolotl's kernels compute W0 x + s B A x, without phi; leave it out"
_QUANTIZED = (
    "axolotl quantises a base while it loads it for adapter: lora and qlora only, and would load this one whole; name "
    "as base_model a checkpoint that is quantised already, or train with: lrlora train --quantization bnb-4bit"
)
_FSDP = (
    "axolotl saves an adapter under FSDP by its parameters alone, without tau; train under DDP, or under FSDP2 with "
    "lrlora train"
)
REFUSED = {
    "load_in_4bit": _QUANTIZED,
    "load_in_8bit": _QUANTIZED,
    "peft_use_dora": NOT_HERE["use_dora"],
    "peft": NOT_HERE["loftq_config"],
    "peft_layer_replication": NOT_HERE["layer_replication"],
    "peft_ensure_weight_tying": NOT_HERE["ensure_weight_tying"],
    "lora_mlp_kernel": _KERNEL,
    "lora_qkv_kernel": _KERNEL,
    "lora_o_kernel": _KERNEL,
    "lora_embedding_kernel": _KERNEL,
    "loraplus_lr_ratio": (
        "axolotl's LoRA+ gives adapters of embeddings a rate of their own, which LR-LoRA has not; leave it out, or "
        "give B a rate by lr_groups: [{name: B, modules: [lrlora_delta.default.B], lr: ...}]"
    ),
    "fsdp": _FSDP,
    "fsdp_config": _FSDP,
}
"""Keys of axolotl that LR-LoRA cannot do, with what to do instead."""

_OWN = fields_without(FIELD_OF_KEY.values())


def _block() -> type[BaseModel]:
    types = get_type_hints(LRLoraConfig)
    fields: dict[str, Any] = {
        name: (types[name], Field(default=default_of(f), description=f.metadata["help"])) for name, f in _OWN.items()
    }
    return create_model("LRLoraBlock", __config__=ConfigDict(extra="forbid"), **fields)


LRLoraBlock = _block()
"""The keys under `lrlora:`, as LRLoraConfig has them: those that axolotl has no key of its own for."""


class LRLoraArgs(BaseModel):
    """What the plugin adds to axolotl's YAML, and the checks of a YAML with `adapter: lrlora`.

    Raises:
        InputError: (pydantic reports it) a key that LR-LoRA cannot do, a misspelt one, a value outside its range, or
            the block without the adapter.
    """

    lrlora: LRLoraBlock | None = Field(  # pyright: ignore[reportInvalidTypeForm]
        default=None, description="fields of LR-LoRA that LoRA has not, for adapter: lrlora"
    )

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, data: dict[str, Any]) -> dict[str, Any]:
        if data.get("adapter") != "lrlora":
            if data.get("lrlora") is not None:
                raise InputError(f"the keys under lrlora: need adapter: lrlora, got adapter: {data.get('adapter')}")
            return data
        for key, reason in REFUSED.items():
            if data.get(key):
                raise InputError(f"adapter: lrlora does not take {key}, got {data[key]!r}: {reason}")
        _check_names(data, cls)
        return data

    @model_validator(mode="after")
    def _check_values(self) -> LRLoraArgs:
        settings: Any = self
        if settings.adapter != "lrlora":
            return self
        if settings.merge_lora and settings.merge_method != "legacy":
            raise InputError(
                f"merge_method: {settings.merge_method} adds s B A, without phi; set merge_method: legacy, or use: "
                f"lrlora merge {settings.lora_model_dir or settings.output_dir} --out merged"
            )
        block = self.lrlora.model_dump() if self.lrlora else {}
        config_of({key: getattr(settings, key) for key in FIELD_OF_KEY}, block)
        return self


def _check_names(data: dict[str, Any], schema: type[BaseModel]) -> None:
    """Refuse keys that axolotl, or the block, would not know.

    Raises:
        InputError: one of them, with what is probably meant.
    """
    key_of_field = {field: key for key, field in FIELD_OF_KEY.items()}
    block = data.get("lrlora")
    if block is not None and not isinstance(block, dict):
        raise InputError(f"lrlora: needs fields by name, such as {{tau: auto}}, got {block!r}")
    check_names(block or (), _OWN, key_of_field, "lrlora:")
    for name in data:
        bare = name.removeprefix("lrlora_").removeprefix("lora_").removeprefix("peft_")
        if name in schema.model_fields or (bare == name and name not in _OWN):
            continue
        if bare in _OWN:
            raise InputError(f"axolotl does not know {name}; write {bare} under lrlora:")
        raise InputError(f"axolotl does not know {name}; did you mean {meant(name, [*FIELD_OF_KEY]) or 'another key'}?")


def config_of(settings: dict[str, Any], block: dict[str, Any], linear_names: list[str] | None = None) -> LRLoraConfig:
    """LRLoraConfig by the keys of a YAML.

    Args:
        settings: axolotl's own keys, those of `FIELD_OF_KEY`; None and absent ones keep the default of LRLoraConfig.
        block: the keys under `lrlora:`.
        linear_names: of `lora_target_linear: true`, adapted besides `lora_target_modules`.

    Raises:
        InputError: a value that LRLoraConfig refuses.
    """
    fields = {FIELD_OF_KEY[key]: value for key, value in settings.items() if value is not None}
    for name in ("target_modules", "target_parameters"):
        if isinstance(fields.get(name), str) and (name == "target_parameters" or linear_names):
            fields[name] = [fields[name]]
    if linear_names:
        fields["target_modules"] = sorted({*fields.get("target_modules", []), *linear_names})
    return LRLoraConfig(**fields, **block)


class LRLoraPlugin(BasePlugin):
    """`adapter: lrlora` for axolotl: trains, resumes, merges and runs LR-LoRA (arXiv:2606.04325).

    It puts two callbacks into axolotl's trainer: `lrlora.TauCallback`, which tau = "auto" needs, and
    `lrlora.RankCallback`, which writes ranks.jsonl into output_dir and the means to axolotl's trackers.

    Example:
        plugins: [lrlora.integrations.axolotl.LRLoraPlugin]
        adapter: lrlora
        lora_r: 8
        lora_target_linear: true
        lrlora: {tau: auto}
    """

    def get_input_args(self) -> str:
        """Where axolotl finds the keys that the plugin adds."""
        return f"{__name__}.{LRLoraArgs.__name__}"

    def get_adapter_capabilities(self) -> list[Any]:
        """That there is an adapter of this name; axolotl's own loader for LoRA must not take it."""
        return [AdapterCapabilities(name="lrlora")]

    def load_adapter(
        self, model: Any, cfg: Any, inference: bool = False, config_only: bool = False
    ) -> tuple[Any, LRLoraConfig] | None:
        """A fresh adapter on the model, or that of `lora_model_dir`.

        Args:
            model: the base.
            cfg: the checked YAML.
            inference: whether the adapter is only used.
            config_only: for preference training, where trl puts the adapter on the model.

        Returns:
            The model and its config; (None, config) with config_only; None: the adapter is another plugin's.

        Raises:
            InputError: what cannot be adapted, or `lora_model_dir` holds an adapter of another method.
        """
        if cfg.adapter != "lrlora":
            return None
        linear_names = find_all_linear_names(model) if cfg.lora_target_linear else None
        config = config_of({key: cfg[key] for key in FIELD_OF_KEY}, dict(cfg.lrlora or {}), linear_names)
        config.task_type = "SEQ_CLS" if cfg.reward_model else "TOKEN_CLS" if cfg.process_reward_model else "CAUSAL_LM"  # pyright: ignore[reportAttributeAccessIssue]
        if config_only:
            return None, config
        options = {}
        if cfg.peft_autocast_adapter_dtype is not None:
            options["autocast_adapter_dtype"] = cfg.peft_autocast_adapter_dtype
        if cfg.lora_model_dir:
            if cfg.lora_on_cpu:
                options |= {"device_map": {"": "cpu"}, "max_memory": {"cpu": "256GiB"}}
            model = peft.PeftModel.from_pretrained(model, cfg.lora_model_dir, is_trainable=not inference, **options)
            config = _saved(model, config, cfg.lora_model_dir)
        else:
            model = peft.get_peft_model(model, config, **options)
        if not cfg.local_rank:
            model.print_trainable_parameters()
        return model, config

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[TrainerCallback]:
        """What moves tau, for tau = "auto"."""
        return [TauCallback()] if cfg.adapter == "lrlora" else []

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[TrainerCallback]:
        """What records the learned ranks."""
        return [RankCallback(log=trainer.log)] if cfg.adapter == "lrlora" else []


def _saved(model: Any, asked: LRLoraConfig, folder: str) -> LRLoraConfig:
    """The config of a loaded adapter, which holds; warns of fields that the YAML has otherwise."""
    found = config_of_loaded(model, folder)
    # names of modules are written out in the saved one
    resolved = {"target_modules", "exclude_modules", "init_weights", "modules_to_save", "config_version"}
    names = [n for n in LRLoraConfig.__annotations__ if n not in resolved and getattr(found, n) != getattr(asked, n)]
    if names:
        said = ", ".join(f"{n} {getattr(found, n)!r}, not {getattr(asked, n)!r}" for n in names)
        _LOG.warning("the adapter of %s keeps what it was trained with: %s", folder, said)
    return found
