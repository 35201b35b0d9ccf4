"""One process of a distributed training on CPUs: torchrun ... worker.py LAYOUT SHARE FOLDER

LAYOUT is one of single, ddp, fsdp1, fsdp2, "fsdp2 in one unit"; SHARE is LRLoraConfig's, or "experts" for a model of
experts. Every process trains on its part of the same global batch, and rank 0 saves the adapter as PEFT selects it into
FOLDER.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from lrlora import LRLoraConfig, follow_tau, param_groups
from lrlora.tuner import LRLoraDelta, deltas

STEPS, ROWS = 3, 4


def model_of(share: str) -> nn.Module:
    """The same tiny Llama, or Mixtral, in every process."""
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    if share == "experts":
        base = MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=4, num_experts_per_tok=2))
        chosen = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    else:
        base = LlamaForCausalLM(LlamaConfig(**sizes))
        phi = {"carrier": "signs", "carrier_start": "closed"} if share == "signs" else {"share": share}
        chosen = {"target_modules": ["q_proj", "v_proj", "down_proj"], **phi}
    model = get_peft_model(base, LRLoraConfig(r=2, task_type="CAUSAL_LM", tau="auto", tau_warmup_steps=1, **chosen))
    for *_, delta in deltas(model):
        nn.init.normal_(delta.B, std=0.05)
    return model


def wrap(model: nn.Module, layout: str) -> nn.Module:
    """The model as DDP, FSDP1 or FSDP2 would train it."""
    if layout == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if layout == "fsdp1":
        from peft.utils.other import fsdp_auto_wrap_policy
        from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

        return FullyShardedDataParallel(
            model,
            auto_wrap_policy=fsdp_auto_wrap_policy(model),
            sharding_strategy=ShardingStrategy.FULL_SHARD,
            device_id=torch.device("cpu"),
            use_orig_params=True,
        )
    if layout == "fsdp2 in one unit":
        from torch.distributed.fsdp import fully_shard

        fully_shard(model)
    if layout == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        for module in list(model.modules()):
            # what PEFT's wrapping policy would shard on its own
            weight = getattr(module, "weight", None)
            if isinstance(module, LRLoraDelta) and weight is not None and weight.requires_grad:
                fully_shard(module)
        for block in model.base_model.model.model.layers:
            fully_shard(block)
        fully_shard(model)
    return model


def whole_state(model: nn.Module, wrapped: nn.Module, layout: str) -> dict[str, torch.Tensor]:
    """The adapter as PEFT selects it from the gathered state dict."""
    if layout == "fsdp1":
        from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType

        full = FullStateDictConfig(rank0_only=False)
        with FullyShardedDataParallel.state_dict_type(wrapped, StateDictType.FULL_STATE_DICT, full):
            return get_peft_model_state_dict(model, state_dict=wrapped.state_dict())
    state = get_peft_model_state_dict(model)
    return {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in state.items()}


def main(layout: str, share: str, folder: Path) -> None:
    """Train, and write what came out."""
    rank, size = 0, 1
    if layout != "single":
        dist.init_process_group("gloo")
        rank, size = dist.get_rank(), dist.get_world_size()
    model = model_of(share)
    wrapped = wrap(model, layout)
    if layout == "fsdp1":
        # the parameters are shards, which deltas() does not know: by name, with the rates of `param_groups`
        rates = {n: 0.05 if n.endswith("theta") else 0.5 for n, p in wrapped.named_parameters() if p.requires_grad}
        optimizer = torch.optim.SGD([{"params": [wrapped.get_parameter(n)], "lr": rate} for n, rate in rates.items()])
    else:
        optimizer = torch.optim.SGD(param_groups(model, lr=0.5, c_lr=0.5))
    generator = torch.Generator().manual_seed(3)
    wrapped.train()
    for step in range(STEPS):
        follow_tau(model, step, STEPS)
        ids = torch.randint(3, 64, (ROWS, 8), generator=generator)[rank * ROWS // size : (rank + 1) * ROWS // size]
        wrapped(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    state = whole_state(model, wrapped, layout)
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().clone().contiguous() for k, v in state.items()}, folder / "adapter.safetensors")
    if layout != "single":
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
