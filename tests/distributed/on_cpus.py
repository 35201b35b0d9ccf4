"""`lrlora` under accelerate's FSDP or DeepSpeed on CPUs: accelerate launch --config_file FILE.yaml on_cpus.py train ...

accelerate shards only for processes with devices of their own, and on CPUs it trains under DDP without a word. Here it
is told that these processes have some. All else, the launcher and its environment included, is what runs on GPUs.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

from accelerate import DistributedType, PartialState

from lrlora.cli import main

begin = PartialState.__init__


def as_with_devices(self: Any, cpu: bool = False, **named: Any) -> None:
    """As in a process with a GPU, whatever lrlora and transformers say."""
    begin(self, False, **named)


PartialState.__init__ = as_with_devices
PartialState._prepare_backend = lambda self, *_: ("gloo", DistributedType.MULTI_GPU)  # pyright: ignore[reportAttributeAccessIssue]
sys.exit(main())
