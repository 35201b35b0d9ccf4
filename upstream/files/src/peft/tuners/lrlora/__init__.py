from peft.utils import register_peft_method

from .config import LRLoraConfig
from .layer import Conv, Embedding, Linear, LRLoraLayer, MultiheadAttention, ParamWrapper
from .model import LRLoraModel


__all__ = [
    "Conv",
    "Embedding",
    "LRLoraConfig",
    "LRLoraLayer",
    "LRLoraModel",
    "Linear",
    "MultiheadAttention",
    "ParamWrapper",
]

register_peft_method(name="lrlora", config_cls=LRLoraConfig, model_cls=LRLoraModel, is_mixed_compatible=False)
