"""How many tokens a row may have, where nobody says: as many as the model was made for."""

from __future__ import annotations

from typing import Any

from lrlora.data.encode import Say
from lrlora.errors import InputError

_NO_LIMIT = 10**7
"""Tokenizers without a limit say 10**30."""
_WITHOUT_LIMIT = 512
"""For models that name no limit, such as T5 with its relative positions."""


def length_of_rows(asked: int | None, tokenizer: Any, model: Any, say: Say = lambda line: None) -> int:
    """How many tokens a row may have: what is asked for, or what the model was made for.

    Args:
        asked: None means all that the model takes.
        tokenizer: its `model_max_length` counts where it says one.
        model: its positions count.
        say: gets a line where more is asked for than a model with computed positions (RoPE) was made for.

    Raises:
        InputError: more than the model has positions, where each position has a learned vector.

    Example:
        length_of_rows(None, tokenizer, model)
    """
    learned, named = _learned_positions(model), _positions_in_config(model)
    limits = [n for n in (learned, named, getattr(tokenizer, "model_max_length", None)) if n and n < _NO_LIMIT]
    if asked is None:
        return min(limits, default=_WITHOUT_LIMIT)
    if learned is not None and asked > learned:
        raise InputError(f"max_length must be at most {learned}, the positions of this model, got {asked}")
    if learned is None and named is not None and asked > named:
        say(f"max_length {asked} is above the {named} positions that this model was made for")
    return asked


def _learned_positions(model: Any) -> int | None:
    """Rows of the table of positions that a row can use; None where there is none, as with RoPE."""
    for name, module in model.named_modules():
        own = name.rpartition(".")[2]
        if own in ("position_embeddings", "embed_positions", "wpe") and hasattr(module, "num_embeddings"):
            # RoBERTa counts positions from behind the padding's, OPT and BART from 2
            first = module.padding_idx + 1 if module.padding_idx is not None else getattr(module, "offset", 0)
            return module.num_embeddings - first
    return None


def _positions_in_config(model: Any) -> int | None:
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 and _learned_positions(model) is None else None
