"""The fields of peft.LoraConfig: which of them LRLoraConfig has too, and why it has not the others."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from peft import LoraConfig

from lrlora.errors import InputError

_INITS = "A and B start at random and at 0, because dW = 0 is where phi is known"
NOT_HERE: dict[str, str] = {
    "use_dora": "DoRA's magnitude is not combined with phi; leave it out, or train peft.LoraConfig(use_dora=True)",
    "lora_bias": "a bias of B has no place in phi(B A); leave it out, or train the layers' own with bias='all'",
    "layer_replication": "layers are not repeated; leave it out, or repeat them in the base",
    "loftq_config": f"{_INITS}; leave it out",
    "eva_config": f"{_INITS}; leave it out",
    "corda_config": f"{_INITS}; leave it out",
    "lora_ga_config": f"{_INITS}; leave it out",
    "megatron_config": "Megatron's parallel layers are not adapted; leave it out",
    "megatron_core": "Megatron's parallel layers are not adapted; leave it out",
    "use_qalora": "QALoRA pools the input of A, which phi(B A) has not; leave it out",
    "qalora_group_size": "QALoRA pools the input of A, which phi(B A) has not; leave it out",
    "alora_invocation_tokens": "an adapter is active for all tokens; leave it out",
    "arrow_config": "adapters are not routed; leave it out, or choose one per row with adapter_names",
    "runtime_config": "factors are not offloaded for a while; leave it out",
    "velora_config": "inputs are not compressed; leave it out",
    "monteclora_config": "one A and one B are trained; leave it out",
    "use_bdlora": "A and B are not block-diagonal; leave it out",
    "kasa_config": "the base's small singular values stay; leave it out",
    "ensure_weight_tying": (
        "adapters of tied weights are not tied; load the base with tie_word_embeddings=False, or adapt neither of them"
    ),
}
"""Fields of LoraConfig that have no meaning here, with what to do instead."""


def refuse_what_is_not_here(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields without those of LoraConfig that LRLoraConfig has not; they may only say that they are not used.

    Raises:
        InputError: one of them asks for something.
    """
    defaults = {field.name: default_of(field) for field in dataclasses.fields(LoraConfig)}
    for name in NOT_HERE.keys() & fields.keys():
        if fields[name] is not None and fields[name] != defaults.get(name):
            raise InputError(f"LRLoraConfig has no {name}, got {fields[name]!r}: {NOT_HERE[name]}")
    return {name: value for name, value in fields.items() if name not in NOT_HERE}


def taking_fields_of_lora(init: Callable[..., None]) -> Callable[..., None]:
    """A config's constructor that says why it has not some fields of LoraConfig, instead of calling them unknown."""

    # inspect.signature follows to the constructor inside: PEFT reads from it which fields there are
    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **fields: Any) -> None:
        init(self, *args, **refuse_what_is_not_here(fields))

    return wrapped


def fields_of_lora(config: Any) -> dict[str, Any]:
    """The fields of a LoraConfig as arguments of LRLoraConfig.

    Raises:
        InputError: another kind of config, or one that asks for something that LR-LoRA has not.
    """
    if type(config) is not LoraConfig:
        raise InputError(f"from_lora takes a peft.LoraConfig, got {type(config).__name__}")
    own = ("peft_type", "auto_mapping", "peft_version")
    found = {f.name: getattr(config, f.name) for f in dataclasses.fields(LoraConfig) if f.name not in own}
    for name in ("target_modules", "exclude_modules"):
        found[name] = sorted(found[name]) if isinstance(found[name], set) else found[name]
    return refuse_what_is_not_here(found)


def lora_with_fields_of(config: Any) -> LoraConfig:
    """LoraConfig with all that it has in common with an LRLoraConfig."""
    own = {f.name for f in dataclasses.fields(LoraConfig)} - {"peft_type", "lora_alpha", "alpha_pattern", "bias"}
    found = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name in own}
    # LoraConfig has one alpha for all modules that name none, LRLoraConfig without lora_alpha 2 r of each
    alphas = {name: config.alpha_of(rank) for name, rank in config.rank_pattern.items()}
    return LoraConfig(
        **{**found, "init_lora_weights": config.init_weights},
        lora_alpha=config.alpha_of(config.r),
        alpha_pattern={**alphas, **config.alpha_pattern},
        bias="lora_only" if config.bias == "lrlora_only" else config.bias,
    )


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field, made by its factory if it has one."""
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
