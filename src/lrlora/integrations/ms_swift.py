"""LR-LoRA in ms-swift: `--tuner_type lrlora --callbacks lrlora` with a plugin file that imports this module.

What swift has a flag for (`--lora_rank`, `--target_modules`, ...) keeps that flag and its default; the fields of phi
are JSON, `--model_kwargs '{"lrlora": {"tau": "auto"}}'`. The module is not named swift: `--external_plugins` puts a
file's folder in front of Python's path, where a swift.py would hide the package from processes that swift starts.
"""

from __future__ import annotations

from typing import Any

import peft

from lrlora.errors import InputError
from lrlora.integrations.fields import check_names, config_of_loaded, fields_without, refuse_without
from lrlora.ranks.record import RankCallback
from lrlora.tuner.callback import TauCallback
from lrlora.tuner.config import LRLoraConfig
from lrlora.tuner.lora_fields import NOT_HERE

try:
    from swift.callbacks import callbacks_map  # pyright: ignore[reportMissingImports]
    from swift.tuner_plugin import PeftTuner, tuners_map  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    refuse_without("ms-swift", "swift", error)

NAME = "lrlora"
"""Of the tuner, of the callback, and of the key in `--model_kwargs`."""

FLAG_OF_FIELD = {
    "r": "--lora_rank",
    "lora_alpha": "--lora_alpha",
    "lora_dropout": "--lora_dropout",
    "bias": "--lora_bias",
    "use_rslora": "--use_rslora",
    "init_weights": "--init_weights",
    "target_modules": "--target_modules",
    "target_parameters": "--target_parameters",
    "modules_to_save": "--modules_to_save",
}
"""Fields of LRLoraConfig that swift has a flag for."""

REFUSED = {
    "use_dora": NOT_HERE["use_dora"],
    "lorap_lr_ratio": "swift's LoRA+ knows LoRA's parameters alone; leave it out",
    "lora_dtype": "A, B and c are float32, or what PEFT makes of them; leave it out",
    "use_swift_lora": "there is no LR-LoRA of swift's own; leave it out",
}
"""Flags of swift that LR-LoRA cannot do, with what to do instead."""

_TASK_TYPES = {
    "EMBEDDING": None,
    "RERANKER": "SEQ_CLS",
    "GENERATIVE_RERANKER": "CAUSAL_LM",
    "DECISION": "CAUSAL_LM",
}


def config_of(args: Any, target_modules: Any, modules_to_save: list[str]) -> LRLoraConfig:
    """LRLoraConfig by swift's arguments.

    Args:
        args: swift's SftArguments, or RLHFArguments.
        target_modules: names or a regular expression, with "all-linear" written out.
        modules_to_save: names, with "all-embedding" and "all-norm" written out.

    Raises:
        InputError: an argument that LR-LoRA cannot do, a misspelt field, or a value outside its range.
    """
    for name, reason in REFUSED.items():
        if getattr(args, name, None):
            raise InputError(f"--tuner_type lrlora does not take --{name}, got {getattr(args, name)!r}: {reason}")
    if args.tuner_backend != "peft":
        raise InputError(f"--tuner_type lrlora needs --tuner_backend peft, got {args.tuner_backend}")
    block = (args.model_kwargs or {}).get(NAME, {})
    if not isinstance(block, dict):
        raise InputError(f'--model_kwargs needs fields by name, such as {{"{NAME}": {{"tau": "auto"}}}}, got {block!r}')
    check_names(block, fields_without(FLAG_OF_FIELD), FLAG_OF_FIELD, f"{NAME} in --model_kwargs")
    task = args.task_type.upper()
    config = LRLoraConfig(
        task_type=_TASK_TYPES.get(task, task),
        r=args.lora_rank,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        bias=args.lora_bias,
        use_rslora=args.use_rslora,
        init_weights=args.init_weights,
        target_modules=target_modules,
        target_parameters=args.target_parameters,
        modules_to_save=modules_to_save or None,
        **block,
    )
    if config.tau == "auto" and NAME not in args.callbacks:
        raise InputError(f'tau="auto" is moved by a callback: add --callbacks {NAME}, also to the command that resumes')
    return config


class LRLoraTuner(PeftTuner):
    """`--tuner_type lrlora` for swift sft, rlhf, export and infer (arXiv:2606.04325).

    Example:
        swift sft --external_plugins plugin.py --tuner_type lrlora --callbacks lrlora --model ... --dataset ...
    """

    @staticmethod
    def prepare_model(args: Any, model: Any) -> Any:
        """A fresh adapter on the model.

        Raises:
            InputError: as `config_of`, and what cannot be adapted.
        """
        # swift loads its pipelines after its plugins
        from swift.pipelines.train.tuner import (  # pyright: ignore[reportMissingImports]
            get_modules_to_save,
            get_target_modules,
        )

        config = config_of(args, get_target_modules(args, model), get_modules_to_save(args, model, args.task_type))
        return peft.get_peft_model(model, config)

    @staticmethod
    def from_pretrained(model: Any, model_id: str, **kwargs: Any) -> Any:
        """The adapter of a folder on the model, to train on, to use or to merge.

        Raises:
            InputError: the folder holds an adapter of another method.
        """
        model = peft.PeftModel.from_pretrained(model, model_id, **kwargs)
        config_of_loaded(model, model_id)
        return model


class LRLoraCallback(RankCallback, TauCallback):
    """`--callbacks lrlora`: records the learned ranks in output_dir, and moves tau where it is "auto"."""

    def __init__(self, args: Any, trainer: Any) -> None:
        super().__init__(log=trainer.log)


tuners_map[NAME] = LRLoraTuner
callbacks_map[NAME] = LRLoraCallback
