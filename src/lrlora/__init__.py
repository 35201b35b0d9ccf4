"""LR-LoRA for Hugging Face PEFT: adapters whose rank is learned (arXiv:2606.04325).

    from peft import get_peft_model
    from lrlora import LRLoraConfig
    model = get_peft_model(model, LRLoraConfig(r=8, target_modules="all-linear"))

Importing this package registers the method with PEFT. Its rooms, each importing only those above it:

    statistics/  how sure a number is: intervals, paired differences
    method/      the paper as mathematics: phi, dW = s phi(B A), ranks
    ops/         the same, fast
    internals.py  what is used of torch and transformers beyond their documented API
    tuner/       inside PEFT: LRLoraConfig, the layer, the model; the Trainer callback for tau = "auto"
    ranks/       what was learned: the rank of every layer, while training and at the end, against its baselines
    data/        tasks and their text
    saved/       what is on disk: adapter folders, run folders, and how they are loaded
    evaluation/  the score of a model on a task
    training/    train(TrainConfig(...)) -> a run folder
    export/      merge into plain weights; plain LoRA; the ranks to train one with
    report/      what was learned, as one HTML page of runs
    cli/         the command `lrlora`, one file per verb
    integrations/  inside other training tools: axolotl, ms-swift, LLaMA-Factory
    run.py       python -m lrlora.run TOOL: a tool that knows nothing of lrlora, in a process that does

The package peft_study, methods x tasks x rates x seeds, comes with this one and depends on it, not the reverse.
"""

from lrlora.errors import InputError
from lrlora.ops import adapted_linear, by_definition, delta_weight
from lrlora.ranks import LayerRank, RankCallback, layer_ranks, record_ranks
from lrlora.tuner import LRLoraConfig, LRLoraLayer, LRLoraModel, deltas
from lrlora.tuner.callback import TauCallback
from lrlora.tuner.hotswap import hotswap_adapter
from lrlora.tuner.optimize import follow_tau, param_groups

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "LRLoraConfig",
    "LRLoraLayer",
    "LRLoraModel",
    "LayerRank",
    "RankCallback",
    "TauCallback",
    "adapted_linear",
    "by_definition",
    "delta_weight",
    "deltas",
    "follow_tau",
    "hotswap_adapter",
    "layer_ranks",
    "param_groups",
    "record_ranks",
]
