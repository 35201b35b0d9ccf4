"""LR-LoRA for Hugging Face PEFT: adapters whose rank is learned (arXiv:2606.04325).

    from peft import get_peft_model
    from lrlora import LRLoraConfig
    model = get_peft_model(model, LRLoraConfig(r=8, target_modules="all-linear"))

Importing this package registers the method with PEFT. Its rooms, each importing only those above it:

    statistics/  how sure a number is: intervals, paired differences, attention against MLP
    method/    the paper as mathematics: phi, dW = s phi(B A), ranks
    ops/       the same, fast
    tuner/     inside PEFT: LRLoraConfig, the layer, the model, the learned ranks of a model
    data/      tasks and their text
    training/  train(TrainConfig(...)) -> a run folder; the Trainer callback for tau = "auto"
    evaluation/ what a model gets right
    export/    merge into plain weights; plain LoRA; the ranks to train one with
    report/    what was learned, for the eye: one HTML page of runs
    cli/       the command `lrlora`, one file per verb

The package peft_study, methods x tasks x rates x seeds, comes with this one and depends on it, not the reverse.
"""

from lrlora.errors import InputError
from lrlora.ops import adapted_linear, delta_weight
from lrlora.tuner import LRLoraConfig, LRLoraLayer, LRLoraModel
from lrlora.tuner.callback import TauCallback
from lrlora.tuner.hotswap import hotswap_adapter
from lrlora.tuner.optimize import follow_tau, param_groups
from lrlora.tuner.ranks import LayerRank, layer_ranks
from lrlora.tuner.records import RankCallback, record_ranks

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
    "delta_weight",
    "follow_tau",
    "hotswap_adapter",
    "layer_ranks",
    "param_groups",
    "record_ranks",
]
