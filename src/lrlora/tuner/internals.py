"""What lrlora imports of PEFT beyond its documented classes; and what else a PEFT release can break, and where.

Everything undocumented that PEFT has as a function is imported here. Its tuners and layers are made by inheritance,
so other files override what PEFT calls, or use its private attributes. These, by file:

    lrlora/tuner/model.py
        _create_and_replace, _replace_module, _prepare_adapter_config, _check_new_adapter_config,
        _prepare_model, _cast_adapter_dtype, _enable_peft_forward_hooks, _check_merge_allowed,
        _get_adapter_state_dict, _remap_adapter_state_dict_for_load, _get_learnable_bias_state_dict,
        _remove_adapter_name_from_key, _check_target_module_exists, inject_adapter, prefix,
        target_module_mapping, tuner_layer_cls
    lrlora/tuner/layer.py
        _move_adapter_to_device_of_base_layer, _disable_adapters, adapter_layer_names,
        other_param_names, merge, unmerge, backend_name, supports_merge, get_base_weight,
        set_base_weight, maybe_clone_base_result
    lrlora/tuner/types.py
        backend_name, supports_lora_conversion
    lrlora/tuner/attention.py
        unload_and_optionally_merge_module
    lrlora/tuner/experts.py
        unload_and_optionally_merge_module
    lrlora/tuner/hotswap.py
        _check_target_module_exists
    lrlora/export/skeleton.py
        _check_merge_allowed

Besides, `experts.ParamWrapper` has the name by which PEFT knows such wrappers, and `peft_optimizers.py` replaces
functions of `peft.optimizers`. A test compares the table with the code.
"""

from __future__ import annotations

from typing import Any

import peft
from packaging.version import Version
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _get_tuner_state_dict_key_prefixes,
    _maybe_include_all_linear_layers,
    check_adapters_to_merge,
)
from peft.utils import INCLUDE_LINEAR_LAYERS_SHORTHAND, AuxiliaryTrainingWrapper, PeftType, register_peft_method
from peft.utils import SAFETENSORS_WEIGHTS_NAME as WEIGHTS
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from peft.utils.quantization_utils import (
    get_quantization_kwargs,
    quantization_extra_repr,
    resolve_quantization_backend,
)

__all__ = [
    "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING",
    "WEIGHTS",
    "AuxiliaryTrainingWrapper",
    "BaseTuner",
    "BaseTunerLayer",
    "PeftType",
    "check_adapters_to_merge",
    "get_pattern_key",
    "include_all_linear",
    "is_all_linear",
    "quantization_extra_repr",
    "register",
    "resolve_quantization",
    "tuner_key_prefixes",
]

NAME = "LRLORA"
OLDEST, NEWEST_BELOW = Version("0.21"), Version("0.22")


def resolve_quantization(layer: Any, model: Any) -> Any:
    """PEFT's backend for a quantised layer (reads and writes its weight); None for a layer that is not quantised."""
    return resolve_quantization_backend(layer, **get_quantization_kwargs(model))


def is_all_linear(config: Any) -> bool:
    """Whether a config's target_modules is "all-linear", in any case."""
    targets = config.target_modules
    return isinstance(targets, str) and targets.lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND


def include_all_linear(config: Any, model: Any) -> None:
    """Put the names of all linear layers but heads into a config whose target_modules is "all-linear"."""
    _maybe_include_all_linear_layers(config, model)


def tuner_key_prefixes(model, adapter_name: str | None = None) -> set[str]:
    """State-dict key prefixes of the adapter's tensors, also where FSDP1 wraps modules inside the model.

    PEFT 0.21 strips FSDP1's wrapper name only at the front of a module's name: with nested wrapping it would select
    nothing and save an empty adapter.
    """
    prefixes = _get_tuner_state_dict_key_prefixes(model, adapter_name=adapter_name)
    return {prefix.replace("_fsdp_wrapped_module.", "") for prefix in prefixes}


def register(config_cls: type, model_cls: type) -> None:
    """Make PEFT know the method: a new member of its closed enum PeftType, then its own `register_peft_method`.

    Calling it again is harmless.

    Raises:
        ImportError: a PEFT outside the supported range, or one that has a method of this name already.
        RuntimeError: the new member does not behave as one (an untested Python or PEFT).
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    version = Version(peft.__version__)
    if not OLDEST <= version < NEWEST_BELOW and not version.is_devrelease:
        raise ImportError(
            f"lrlora needs peft>={OLDEST},<{NEWEST_BELOW}, got {version}; pip install 'peft<{NEWEST_BELOW}'"
        )
    if NAME in PEFT_TYPE_TO_CONFIG_MAPPING:
        registered = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(NAME)]
        if registered is not config_cls:
            raise ImportError(
                f"peft {version} has LR-LoRA itself ({registered.__module__}), and lrlora cannot register it a second "
                "time; its adapters are the same files: use it without lrlora (from peft import LRLoraConfig), or "
                f"install a peft that does not have it for what lrlora adds: pip install 'peft<{NEWEST_BELOW}'"
            )
        return
    _add_peft_type()
    register_peft_method(name=NAME.lower(), config_cls=config_cls, model_cls=model_cls, is_mixed_compatible=False)


def _add_peft_type() -> None:
    """Add PeftType.LRLORA. An Enum is closed, so the member is made by hand, as EnumType makes one."""
    if NAME in PeftType.__members__:
        return
    member = str.__new__(PeftType, NAME)
    member._name_ = NAME
    member._value_ = NAME
    member.__objclass__ = PeftType  # pyright: ignore[reportAttributeAccessIssue]
    member._sort_order_ = len(PeftType._member_names_)  # pyright: ignore[reportAttributeAccessIssue]
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
    if hasattr(PeftType, "_hashable_values_"):
        PeftType._hashable_values_.append(NAME)  # pyright: ignore[reportAttributeAccessIssue]
    if getattr(PeftType, NAME, None) is None:
        # from Python 3.12 members are plain attributes of the class, which EnumType refuses to set
        type.__setattr__(PeftType, NAME, member)
    is_member = PeftType(NAME) is member and getattr(PeftType, NAME) is member and member in list(PeftType)
    if not is_member:
        raise RuntimeError(f"could not add {NAME} to peft.PeftType of peft {peft.__version__}; please report it")
