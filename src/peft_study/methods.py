"""The methods that an arm can name: presets, every method that PEFT knows, and config classes of other packages."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import typing
from dataclasses import dataclass
from typing import Any

import peft

from lrlora.errors import InputError
from lrlora.tuner import LRLoraConfig
from peft_study.yaml_fields import did_you_mean


@dataclass(frozen=True)
class Method:
    """A method: its config in PEFT, and what of it is not PEFT's default here.

    Args:
        config: class of the config; None: no adapter, all weights are trained.
        defaults: fields that differ from the class's defaults.
        fixed: fields that make the method what it is; an arm cannot change them.
        rank, alpha: names of the fields whose quotient is s; no alpha where the method has none, or where its config
            sets it by the rank.
        scale: s of an arm that names no alpha.
    """

    config: type[Any] | None
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    rank: str = "r"
    alpha: str | None = None
    scale: int = 2


METHODS: dict[str, Method] = {
    "full": Method(None),
    "lora": Method(peft.LoraConfig, {"r": 8}, alpha="lora_alpha"),
    "rslora": Method(peft.LoraConfig, {"r": 8}, {"use_rslora": True}, alpha="lora_alpha"),
    "dora": Method(peft.LoraConfig, {"r": 8}, {"use_dora": True}, alpha="lora_alpha"),
    "adalora": Method(peft.AdaLoraConfig, {"target_r": 8, "init_r": 12}, rank="init_r", alpha="lora_alpha"),
    # PEFT's own scale of RandLoRA
    "randlora": Method(peft.RandLoraConfig, {"r": 32}, alpha="randlora_alpha", scale=20),
    "hira": Method(peft.HiraConfig),
    "vera": Method(peft.VeraConfig),
    "loha": Method(peft.LoHaConfig, {"r": 8}, alpha="alpha"),
    "fourierft": Method(peft.FourierFTConfig),
    "peanut": Method(peft.PeanutConfig),
    "sine": Method(LRLoraConfig, {"r": 8}, {"phi": "sine"}),
    "lrlora": Method(LRLoraConfig, {"r": 8}),
}
"""Defaults are PEFT's own, but for rank 8 and alpha = 2 r in the family of LoRA, and alpha = 20 r in RandLoRA."""

SAME_FOR_ALL = (
    "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern",
    "target_parameters", "trainable_token_indices", "bias",
)  # fmt: skip
_NOT_FOR_USERS = (
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "total_step", "config_version",
)  # fmt: skip
UNUSED = {"adalora": ("r",)}
"""Fields that a config has and its method does not read."""
_PLACED_BY_ARM = ("ADAPTION_PROMPT", "LN_TUNING", "TRAINABLE_TOKENS")
"""Methods of PEFT that adapt no linear layers: their arms name target_modules, or PEFT's default counts."""

_REFUSED = dict.fromkeys(
    ("poly", "multitask_prompt_tuning"), "needs the number of a task (task_ids) in every batch, which a study has not"
)


def method_named(name: str) -> Method:
    """A method by its name in a study file.

    Args:
        name: a preset of METHODS; a method of PEFT, as PEFT's PeftType names it, in small letters ("oft"); or
            "package.module:ConfigClass", a subclass of peft.PeftConfig, which is imported.

    Raises:
        InputError: no such method, module or class, no config of PEFT, or a method that a study cannot train.
    """
    if name in METHODS:
        return METHODS[name]
    if ":" in name:
        return Method(_imported(name))
    of_peft = {kind.lower(): config for kind, config in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if name in of_peft:
        if name in _REFUSED:
            raise InputError(f"method {name!r} {_REFUSED[name]}; take another method")
        return Method(of_peft[name])
    near = did_you_mean(name.lower(), [*METHODS, *of_peft])
    raise InputError(
        f"no method {name!r}{near}; there are: {', '.join(METHODS)}; all other methods of PEFT: "
        f"{', '.join(sorted(of_peft.keys() - METHODS.keys()))}; or package.module:ConfigClass"
    )


def _imported(name: str) -> type[Any]:
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"method {name!r} needs the module {module_name!r}, which cannot be imported: {error}; install it, or put "
            "its folder into PYTHONPATH"
        ) from error
    found = getattr(module, class_name, None)
    if found is None:
        near = did_you_mean(class_name, [each for each in vars(module) if not each.startswith("_")])
        raise InputError(f"method {name!r}: the module {module_name!r} has no {class_name!r}{near}")
    if not (isinstance(found, type) and issubclass(found, peft.PeftConfig) and dataclasses.is_dataclass(found)):
        what = f"the class {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"
        raise InputError(f"method {name!r} is {what}, needed a dataclass that is a subclass of peft.PeftConfig")
    return found


def is_placed_by_arm(method: str) -> bool:
    """Whether an arm of the method names target_modules itself, since it adapts other modules than the others."""
    config = method_named(method).config
    return config in [peft.PEFT_TYPE_TO_CONFIG_MAPPING.get(peft.PeftType(kind)) for kind in _PLACED_BY_ARM]


def parameters_of(config: type[Any]) -> list[str]:
    """Names of the fields that a config takes."""
    return list(inspect.signature(config).parameters)


def kinds_of(method: str) -> dict[str, Any]:
    """The fields that an arm of a method can set, and their types.

    Raises:
        InputError: an unknown method, or a config whose types cannot be read.
    """
    config = method_named(method).config
    if config is None:
        return {}
    try:
        hints = typing.get_type_hints(config)
    except (NameError, TypeError) as error:
        raise InputError(f"the types of the fields of {config.__name__} cannot be read: {error}") from error
    closed = {*SAME_FOR_ALL, *_NOT_FOR_USERS, *UNUSED.get(method, ())}
    if is_placed_by_arm(method):
        closed.remove("target_modules")
    return {name: hints.get(name, Any) for name in parameters_of(config) if name not in closed}
