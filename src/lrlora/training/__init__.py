"""train(TrainConfig(...)) -> a run folder. Needs the extra `train`: pip install "lrlora[train]"."""

from lrlora.training.config import TrainConfig
from lrlora.training.run import RunResult, read_result, train
from lrlora.training.stop import Interrupted

__all__ = ["Interrupted", "RunResult", "TrainConfig", "read_result", "train"]
