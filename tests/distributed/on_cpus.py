"""`lrlora` under accelerate's FSDP on CPUs: accelerate launch --config_file FSDP.yaml on_cpus.py train ...

accelerate applies FSDP only to processes with devices of their own, and leaves it out on CPUs without a word. Here it is
told that these processes have some. All else, the launcher and its environment included, is what runs on GPUs.
"""

from __future__ import annotations

import os
import sys

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

import torch
from accelerate import DistributedType, PartialState

from lrlora.cli import main

torch.distributed.init_process_group("gloo")
PartialState._prepare_backend = lambda self, *_: ("gloo", DistributedType.MULTI_GPU)  # pyright: ignore[reportAttributeAccessIssue]
sys.exit(main())
