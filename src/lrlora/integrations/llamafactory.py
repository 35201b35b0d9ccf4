"""LR-LoRA in LLaMA-Factory: `python -m lrlora.integrations.llamafactory` in place of `llamafactory-cli`.

LLaMA-Factory has a closed list of methods, no key for a callback, and starts no code of the user. It does train on any
adapter of PEFT that `adapter_name_or_path` names. So `train` with a block `lrlora:` in the YAML saves a fresh LR-LoRA
adapter, names it there, and calls LLaMA-Factory's own `run_exp` with the two callbacks of LR-LoRA. No function of
LLaMA-Factory is replaced. The base is loaded once more than without, to see its layers. Other commands (export, chat,
api, ...) are LLaMA-Factory's, in a process that has imported lrlora. USE_V1=1: `lrlora.integrations.llamafactory_v1`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import peft

from lrlora.errors import InputError
from lrlora.integrations.fields import check_names, config_of_saved, fields_without, refuse_without
from lrlora.ranks.record import RankCallback
from lrlora.tuner.callback import TauCallback
from lrlora.tuner.config import LRLoraConfig
from lrlora.tuner.lora_fields import NOT_HERE
from lrlora.tuner.optimize import follow_tau

try:
    from llamafactory.cli import main as run_llamafactory  # pyright: ignore[reportMissingImports]
    from llamafactory.extras.misc import get_device_count, is_env_enabled  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    refuse_without("llamafactory", "llamafactory", error)

KEY_OF_FIELD = {
    "r": "lora_rank",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "use_rslora": "use_rslora",
    "target_modules": "lora_target",
    "modules_to_save": "additional_target",
}
"""Fields of LRLoraConfig that LLaMA-Factory has a key for."""

_UNLIKE = "it makes LoRA layers of its own, without phi; leave it out"
REFUSED = {
    "use_dora": NOT_HERE["use_dora"],
    "pissa_init": "A and B start at random and at 0, because dW = 0 is where phi is known; leave it out",
    "loraplus_lr_ratio": "it finds B by the name lora_B, so ours would get the rate of A; leave it out",
    "use_llama_pro": "it trains the blocks that it has added, which nobody tried with LR-LoRA; leave it out",
    "create_new_adapter": "it makes a plain LoRA on the merged adapter; leave it out",
    "use_unsloth": _UNLIKE,
    "use_kt": _UNLIKE,
    "deepspeed": "not tried inside LLaMA-Factory; leave it out, or use: lrlora train",
}
"""Keys of LLaMA-Factory that LR-LoRA cannot do, with what to do instead."""

MODULE = "lrlora.integrations.llamafactory"
START = "lrlora_start"
"""The folder in output_dir of the fresh adapter."""


def train(args: dict[str, Any] | None = None) -> None:
    """LLaMA-Factory's `train` with LR-LoRA (arXiv:2606.04325): every stage that it trains with a LoRA.

    Writes, besides what LLaMA-Factory writes, ranks.jsonl and the fresh adapter (START) into output_dir. Moves tau
    where it is "auto".

    Args:
        args: the keys of a YAML; None reads sys.argv as LLaMA-Factory does. Fields of LRLoraConfig that it has no key
            for are under "lrlora". Without that, adapter_name_or_path names a saved LR-LoRA, on which training goes on.

    Raises:
        InputError: a key that LR-LoRA cannot do, a misspelt field, a value outside its range, or neither a block
            "lrlora" nor an LR-LoRA to go on with.
    """
    # these check the versions of other packages when they are imported
    from llamafactory.hparams import read_args  # pyright: ignore[reportMissingImports]
    from llamafactory.train.tuner import run_exp  # pyright: ignore[reportMissingImports]

    found = read_args(args)
    if not isinstance(found, dict):
        raise InputError(f"train needs a YAML file, such as train.yaml, got {' '.join(found) or 'nothing'}")
    given = dict(found)
    block = given.pop("lrlora", None)
    _check(given, block)
    if block is not None:
        given["adapter_name_or_path"] = _start(given, block)
    run_exp(given, callbacks=[TauCallback(), RankCallback()])


def config_of(settings: Any, block: dict[str, Any], target_modules: list[str]) -> LRLoraConfig:
    """LRLoraConfig by the keys of a YAML.

    Args:
        settings: LLaMA-Factory's FinetuningArguments.
        block: the keys under `lrlora:`.
        target_modules: names, with "all" written out.

    Raises:
        InputError: a value that LRLoraConfig refuses.
    """
    fields = {field: getattr(settings, key) for field, key in KEY_OF_FIELD.items()}
    return LRLoraConfig(task_type="CAUSAL_LM", **{**fields, "target_modules": target_modules}, **block)


def _check(given: dict[str, Any], block: Any) -> None:
    saved = given.get("adapter_name_or_path")
    if given.get("finetuning_type", "lora") != "lora":
        raise InputError(f"LR-LoRA needs finetuning_type: lora, got {given['finetuning_type']}")
    for key, reason in REFUSED.items():
        if given.get(key):
            raise InputError(f"LR-LoRA does not take {key}, got {given[key]!r}: {reason}")
    if block is None:
        if saved is None:
            raise InputError("no lrlora: in the YAML, such as {tau: auto} or {}; plain LoRA is: llamafactory-cli train")
        names = saved.split(",") if isinstance(saved, str) else saved
        config_of_saved(names[-1].strip())
        return
    if saved is not None:
        raise InputError(f"the fields of the adapter in {saved} hold; leave lrlora: out, or adapter_name_or_path")
    if not isinstance(block, dict):
        raise InputError(f"lrlora: needs fields by name, such as {{tau: auto}}, got {block!r}")
    check_names(block, fields_without(KEY_OF_FIELD), KEY_OF_FIELD, "lrlora:")


def _start(given: dict[str, Any], block: dict[str, Any]) -> str:
    """Save a fresh adapter for the base; returns its folder."""
    from llamafactory.data import get_template_and_fix_tokenizer  # pyright: ignore[reportMissingImports]
    from llamafactory.hparams import get_train_args  # pyright: ignore[reportMissingImports]
    from llamafactory.model import load_model, load_tokenizer  # pyright: ignore[reportMissingImports]
    from llamafactory.model.model_utils.misc import find_all_linear_modules  # pyright: ignore[reportMissingImports]
    from llamafactory.model.model_utils.visual import patch_target_modules  # pyright: ignore[reportMissingImports]

    model_args, data_args, training_args, settings, _ = get_train_args(given)
    folder = os.path.join(training_args.output_dir, START)
    config_of(settings, block, settings.lora_target)  # refuses before the base is loaded
    with training_args.main_process_first(desc="a fresh adapter"):
        if training_args.process_index:
            return folder
        tokenizer = load_tokenizer(model_args)["tokenizer"]
        get_template_and_fix_tokenizer(tokenizer, data_args)
        base = load_model(tokenizer, model_args, settings)
        targets = settings.lora_target
        if targets == ["all"]:
            targets = find_all_linear_modules(base, settings.freeze_vision_tower)
        config = config_of(settings, block, patch_target_modules(base, settings, targets))
        model = peft.get_peft_model(base, config)
        follow_tau(model, step=0, total_steps=1)  # run_exp moves tau: no warning that nothing does
        model.save_pretrained(folder)
    return folder


def main(arguments: list[str] | None = None) -> None:
    """What `llamafactory-cli` does, with LR-LoRA.

    Args:
        arguments: as for llamafactory-cli; None means those of the command line.

    Raises:
        InputError: as `train`, or LLaMA-Factory would start new Python processes, which know no LR-LoRA.
    """
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["help"]
    is_v1 = is_env_enabled("USE_V1")
    run = train
    if is_v1:
        from lrlora.integrations.llamafactory_v1 import run_sft

        run = run_sft
    if command in (("train", "sft", "dpo", "rm") if is_v1 else ("train",)):
        if is_v1 and command not in ("train", "sft"):
            raise InputError(
                f"USE_V1=1 {command} is not there with LR-LoRA; leave USE_V1 out, and set stage: {command} for train"
            )
        if "RANK" not in os.environ and (is_env_enabled("FORCE_TORCHRUN") or get_device_count() > 1):
            raise InputError(
                "LLaMA-Factory would start new Python processes, which do not import lrlora; start them yourself: "
                f"torchrun --nproc_per_node {max(get_device_count(), 1)} -m {MODULE} {' '.join([command, *rest])}"
            )
        sys.argv = ["llamafactory-cli", *rest]
        return run()
    sys.argv = ["llamafactory-cli", command, *rest]
    run_llamafactory()


if __name__ == "__main__":
    try:
        main()
    except InputError as refused:
        print(f"{MODULE}: {refused}", file=sys.stderr, flush=True)
        sys.exit(2)
