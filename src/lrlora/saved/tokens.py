"""The tokenizer of a model, and the one token that both of them pad with."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

from lrlora.data.embedded import model_folder
from lrlora.errors import InputError, first_lines
from lrlora.saved.base import AS_IT_IS, BaseOptions
from lrlora.saved.local import absolute


def load_tokenizer(name: str, options: BaseOptions = AS_IT_IS) -> Any:
    """The tokenizer of a model or an adapter.

    Args:
        name: a folder, a name on the hub, or embedded-decoder.
        options: of the base model: its revision, and whether its code may run.

    Raises:
        InputError: it is not there.
    """
    try:
        return AutoTokenizer.from_pretrained(absolute(model_folder(name)), **options.which)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot load the tokenizer of {name!r}: {first_lines(error)}") from error


def pad_token_id(tokenizer: Any, config: Any) -> int:
    """The number of the token to pad with: the tokenizer's own, the model's, or an end of text of either.

    Args:
        tokenizer: of the model.
        config: of the model.

    Raises:
        InputError: there is none of them.
    """
    for holder, name in ((tokenizer, "pad"), (config, "pad"), (tokenizer, "eos"), (config, "eos")):
        found = getattr(holder, f"{name}_token_id", None)
        # some models end with any of several tokens
        found = found[0] if isinstance(found, list | tuple) and found else found
        # 0 is a token as any other, and some configs write -1 where they have none
        if isinstance(found, int) and 0 <= found < len(tokenizer):
            return found
    raise InputError(
        "the tokenizer has neither a padding token nor an end of text, and the model's config names none; set "
        "tokenizer.pad_token, save it with save_pretrained, and pass that folder"
    )


def settle_padding(model: Any, tokenizer: Any) -> None:
    """Let tokenizer and model pad with the same token; changes both.

    A decoder classifies (layer `score`) by the last token that is not its config's pad_token_id: this must be what
    the tokenizer pads with. Other models keep an id that they have: RoBERTa counts its positions by it.

    Raises:
        InputError: neither has a token that could be it.
    """
    chosen = pad_token_id(tokenizer, model.config)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(chosen)
    if getattr(model.config, "pad_token_id", None) is None or hasattr(model, "score"):
        model.config.pad_token_id = chosen
