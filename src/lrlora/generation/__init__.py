"""What a model writes: loaded from a run, an adapter or a model, asked as in training, one answer or a file of them."""

from lrlora.generation.model import Answer, LanguageModel, load
from lrlora.generation.options import generation_config

__all__ = ["Answer", "LanguageModel", "generation_config", "load"]
