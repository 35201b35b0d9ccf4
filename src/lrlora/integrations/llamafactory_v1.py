"""LR-LoRA in LLaMA-Factory's second version, which USE_V1=1 switches on: `peft_config: {name: lrlora}` in its YAML.

Importing this registers the name in LLaMA-Factory's own registry of methods. Its command `sft` gives the trainer no
callbacks; `run_sft` does.
"""

from __future__ import annotations

from typing import Any

import peft
from torch import nn
from transformers import TrainerControl, TrainerState

from lrlora.errors import InputError
from lrlora.integrations.fields import check_names, config_of_saved, fields_without, refuse_without
from lrlora.ranks.record import RankCallback
from lrlora.tuner.config import LRLoraConfig
from lrlora.tuner.lora_fields import NOT_HERE
from lrlora.tuner.optimize import follow_tau

try:
    from llamafactory.v1.accelerator.interface import DistributedInterface  # pyright: ignore[reportMissingImports]
    from llamafactory.v1.config import get_args  # pyright: ignore[reportMissingImports]
    from llamafactory.v1.core.data_engine import DataEngine  # pyright: ignore[reportMissingImports]
    from llamafactory.v1.core.model_engine import ModelEngine  # pyright: ignore[reportMissingImports]
    from llamafactory.v1.plugins.model_plugins.peft import PeftPlugin, load_adapter  # pyright: ignore[reportMissingImports]
    from llamafactory.v1.trainers.sft_trainer import SFTTrainer  # pyright: ignore[reportMissingImports]
    from llamafactory.v1.utils.callbacks import TrainerCallback  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    refuse_without("llamafactory", "llamafactory", error)

NAME = "lrlora"
"""Of the method, in `peft_config`."""

_OWN = fields_without(())


class LRLoraCallback(TrainerCallback):
    """Moves tau where it is "auto", and records the learned ranks in output_dir."""

    def __init__(self) -> None:
        self._ranks = RankCallback()

    def on_train_begin(self, args: Any, state: Any, **kwargs: Any) -> None:
        """Continue the records of an interrupted training."""
        self._ranks.on_train_begin(args, _as_transformers(state), TrainerControl(), model=_whole(kwargs["model"]))

    def on_step_begin(self, args: Any, state: Any, **kwargs: Any) -> None:
        """Set tau in the next forward pass; LLaMA-Factory has counted this step already."""
        follow_tau(kwargs["model"], step=state.global_step - 1, total_steps=state.num_training_steps)

    def on_step_end(self, args: Any, state: Any, **kwargs: Any) -> None:
        """Record the ranks, if time allows."""
        self._ranks.on_step_end(args, _as_transformers(state), TrainerControl(), model=_whole(kwargs["model"]))

    def on_train_end(self, args: Any, state: Any, **kwargs: Any) -> None:
        """Record the end."""
        self._ranks.on_train_end(args, _as_transformers(state), TrainerControl(), model=_whole(kwargs["model"]))


def _as_transformers(state: Any) -> TrainerState:
    return TrainerState(
        global_step=state.global_step,
        max_steps=state.num_training_steps,
        is_world_process_zero=DistributedInterface().get_rank() == 0,
    )


def _whole(model: Any) -> Any:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def config_of(given: dict[str, Any], is_train: bool = True) -> LRLoraConfig:
    """LRLoraConfig by the keys of `peft_config`, which are its fields.

    `target_modules` is "all" (every linear layer but the output), if left out, or names, as for LLaMA-Factory's LoRA.

    Raises:
        InputError: a misspelt field, or a value that LRLoraConfig refuses.
    """
    fields = {key: value for key, value in given.items() if key not in ("name", "adapter_name_or_path")}
    for key in NOT_HERE.keys() & fields.keys():
        if fields.pop(key):
            raise InputError(f"peft_config of lrlora has no {key}, got {given[key]!r}: {NOT_HERE[key]}")
    check_names(fields, _OWN, {}, "peft_config of lrlora")
    targets = fields.pop("target_modules", None) or "all"
    if isinstance(targets, str):
        targets = "all-linear" if targets in ("all", "all-linear") else [targets]
    return LRLoraConfig(task_type="CAUSAL_LM", inference_mode=not is_train, target_modules=targets, **fields)


@PeftPlugin(NAME).register()
def get_lrlora_model(model: Any, config: dict[str, Any], is_train: bool = False) -> Any:
    """A fresh adapter on the model, or the saved one of `adapter_name_or_path`, merged where it is not trained.

    Raises:
        InputError: as `config_of`, what cannot be adapted, or the folder holds an adapter of another method.
    """
    saved = config.get("adapter_name_or_path")
    if saved:
        for folder in [saved] if isinstance(saved, str) else saved:
            config_of_saved(folder)
        return load_adapter(model, saved, is_train)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InputError(
            "LR-LoRA needs the weights of the base, which init_config: init_on_meta leaves out; leave it out"
        )
    model = peft.get_peft_model(model, config_of(config, is_train))
    if is_train:
        model.print_trainable_parameters()
    return model


def run_sft(args: dict[str, Any] | None = None) -> None:
    """LLaMA-Factory's `run_sft` with LRLoraCallback, which its own has no place for.

    Args:
        args: the keys of a YAML; None reads sys.argv as LLaMA-Factory does.

    Raises:
        InputError: `peft_config` is not that of lrlora; as `get_lrlora_model`.
    """
    model_args, data_args, training_args, _ = get_args(args)
    if model_args.peft_config is None or model_args.peft_config.name != NAME:
        raise InputError(f"the YAML needs peft_config: {{name: {NAME}}}, got {model_args.peft_config}")
    DistributedInterface(training_args.dist_config)
    rows = DataEngine(data_args.train_dataset)
    engine = ModelEngine(model_args, is_train=True)
    trainer = SFTTrainer(
        args=training_args,
        model=engine.model,
        renderer=engine.renderer,
        train_dataset=rows,
        callbacks=[LRLoraCallback()],
    )
    trainer.fit()
    trainer.save_model()
    DistributedInterface().destroy()
