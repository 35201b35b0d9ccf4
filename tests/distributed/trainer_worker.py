"""One process of a training with transformers.Trainer: torchrun ... trainer_worker.py LAYOUT SHARE FOLDER [resume]

LAYOUT is one of single, ddp, fsdp2, zero3. The Trainer wraps the model through accelerate or DeepSpeed, trains, writes
a checkpoint in the middle, and saves the adapter into FOLDER/adapter: what a user would run, here on CPUs. With
"resume" it begins at that checkpoint.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import get_peft_model
from torch import nn

from lrlora import LRLoraConfig, TauCallback, param_groups
from lrlora.training.guard import NonFiniteGuard
from lrlora.tuner import deltas
from lrlora.tuner.sharded import put_phi_in_root

STEPS, ROWS = 4, 4
_ZERO3 = {
    # a threshold of 0 shards the smallest parameter as well
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "zero_force_ds_cpu_optimizer": False,
    "train_micro_batch_size_per_gpu": ROWS // 2,
    "train_batch_size": ROWS,
    "gradient_clipping": 1.0,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "single": {"per_device_train_batch_size": ROWS},
    "ddp": {"ddp_find_unused_parameters": False},
    "fsdp2": {"fsdp": True, "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}},
    "zero3": {"deepspeed": _ZERO3},
}


def base_model() -> nn.Module:
    """The same tiny Llama in every process."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=0, bos_token_id=1, eos_token_id=2, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def _let_accelerate_shard_on_cpus() -> None:
    # accelerate applies FSDP to processes with devices of their own alone, and leaves it out on CPUs without a word
    from accelerate import DistributedType, PartialState

    PartialState(cpu=True)
    PartialState._shared_state.update(distributed_type=DistributedType.MULTI_GPU, device=torch.device("cpu"))


def main(layout: str, share: str, folder: Path) -> None:
    """Train, and save what came out."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=STEPS,
        save_steps=2,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        per_device_eval_batch_size=1,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        optim="sgd",
        remove_unused_columns=False,
        **{"per_device_train_batch_size": ROWS // 2, **LAYOUTS[layout]},
    )
    is_fsdp = layout.startswith("fsdp")
    if is_fsdp:
        _let_accelerate_shard_on_cpus()
    config = LRLoraConfig(
        r=2, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj", "down_proj"], share=share, tau="auto",
        tau_warmup_steps=1,
    )  # fmt: skip
    model = get_peft_model(base_model(), config)
    if is_fsdp:
        put_phi_in_root(model)
    torch.manual_seed(1)
    for *_, delta in deltas(model):
        nn.init.normal_(delta.B, std=0.05)
    ids = torch.randint(3, 64, (STEPS * ROWS, 8), generator=torch.Generator().manual_seed(3))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    groups = param_groups(model, lr=0.2, c_lr=0.2)
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"params": groups, "lr": 0.2}),
        callbacks=[TauCallback(), NonFiniteGuard()],
    )
    trainer.train(resume_from_checkpoint="resume" in sys.argv and str(folder / "checkpoints" / "checkpoint-2"))
    # in one piece: two processes write into one pipe
    print(f"trained as {type(trainer.model_wrapped).__name__}\n", end="", flush=True)
    trainer.save_model(str(folder / "adapter"))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    # DeepSpeed and gloo now and then abort while they are taken down
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
