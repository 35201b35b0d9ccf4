"""Peak memory of a merge: a randomly initialised model of a billion parameters, made on the spot.

    python -m benchmarks.merge_memory [--work DIR]

Each step is a process of its own, whose peak resident memory the system reports.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from lrlora.files import write_json

RESULTS = Path(__file__).parent / "results" / "merge_memory.json"
# 16 blocks of 2048 with an MLP of 8192: 1.2 billion parameters, 2.3 GiB in bfloat16
SHAPE = {
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 32,
}  # fmt: skip


def make(work: Path, shard: str) -> None:
    """The base in bfloat16, and an adapter with an update in every linear layer."""
    import peft
    import torch
    import transformers

    import lrlora
    from lrlora.tuner import deltas

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHAPE)
    with torch.device("meta"):
        base = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    base = base.to_empty(device="cpu")
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    count = sum(parameter.numel() for parameter in base.parameters())
    base.save_pretrained(work / "base", max_shard_size=shard)
    model = peft.get_peft_model(base, lrlora.LRLoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for *_, delta in deltas(model):
        torch.nn.init.normal_(delta.B, std=0.02)
    model.save_pretrained(work / "adapter")
    described = work / "adapter" / "adapter_config.json"
    described.write_text(
        json.dumps({**json.loads(described.read_text()), "base_model_name_or_path": str(work / "base")})
    )
    print(json.dumps({"parameters": count}))


def merge(work: Path) -> None:
    """`lrlora.export.merge`, and the peak of this process."""
    import torch

    from lrlora.export import merge

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    made = merge(str(work / "adapter"), work / "merged", overwrite=True)
    print(
        json.dumps(
            {
                "wall_s": round(time.perf_counter() - started, 1),
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "peak_mib_after_imports": before // 1024,
                "was_streamed": made.was_streamed,
                "layers": len(made.layers),
                "largest_rounding_loss": max(row.rounding_loss for row in made.layers),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "python": platform.python_version(),
            }
        )
    )


def main(work: Path, shard: str) -> None:
    """Make, merge, write down."""
    work.mkdir(parents=True, exist_ok=True)
    found = {"shard": shard, "shape": SHAPE}
    for step in ("make", "merge"):
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.merge_memory", "--step", step]
        ended = subprocess.run([*command, "--work", str(work), "--shard", shard], stdout=subprocess.PIPE, text=True)
        if ended.returncode != 0:
            sys.exit(ended.returncode)
        found.update(json.loads(ended.stdout.splitlines()[-1]))
    found["base_bytes"] = sum(f.stat().st_size for f in (work / "base").glob("*.safetensors"))
    found["shards"] = len(list((work / "merged").glob("*.safetensors")))
    write_json(RESULTS, found)
    print(json.dumps(found, indent=2))
    for name in ("base", "adapter", "merged"):
        shutil.rmtree(work / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", default="runs/merge-memory", help="folder for the model, deleted at the end")
    parser.add_argument("--shard", default="1GB", help="size of the base's shards")
    parser.add_argument("--step", choices=["make", "merge"], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if chosen.step == "make":
        make(Path(chosen.work), chosen.shard)
    elif chosen.step == "merge":
        merge(Path(chosen.work))
    else:
        main(Path(chosen.work), chosen.shard)
