"""The arguments of transformers' GenerationConfig that are passed on under their own names."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from lrlora.errors import InputError, first_lines, meant

MAX_NEW_TOKENS = 256
"""Of an answer, where nobody says; fewer where the model has no room for them."""

_DECIDED = {
    name: why
    for names, why in (
        ("max_length min_length", "it counts the prompt as well; pass max_new_tokens or min_new_tokens"),
        ("num_return_sequences", "a prompt gets one answer; run again with another seed for another one"),
        (
            "output_attentions output_hidden_states output_scores output_logits return_dict_in_generate",
            "only the text is returned; call generate of the model from Python for the rest",
        ),
        (
            "pad_token_id bos_token_id eos_token_id",
            "an answer ends at the token that was learned; pass stop_strings to stop earlier",
        ),
        (
            "encoder_no_repeat_ngram_size encoder_repetition_penalty decoder_start_token_id",
            "it is of models with an encoder",
        ),
        (
            "is_assistant num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold "
            "assistant_early_exit assistant_lookbehind target_lookbehind assistant_ensemble_weight speculation_type "
            "use_mtp",
            "no assistant model is loaded",
        ),
        ("compile_config continuous_batching_config prefill_chunk_size", "it changes how fast, not what is generated"),
        (
            "low_memory penalty_alpha dola_layers diversity_penalty num_beam_groups constraints force_words_ids",
            "transformers has moved it to code on the hub, which is not run",
        ),
        ("transformers_version", "it is no setting"),
    )
    for name in names.split()
}
"""What cannot be chosen, and why."""

_READ_PROMPT = (
    "repetition_penalty",
    "no_repeat_ngram_size",
    "prompt_lookup_num_tokens",
    "bad_words_ids",
    "sequence_bias",
)
# a flag of type bool needs no value behind it
_TYPES: dict[str, Any] = {"int": int | None, "float": float | None, "bool": bool, "str": str | None}


def why_not(name: str) -> str | None:
    """Why an argument of GenerationConfig is no flag; None where it is one, or where there is none of that name."""
    return _DECIDED.get(name)


def names_of_arguments() -> list[str]:
    """Names of all arguments that may be passed on."""
    return [name for name in vars(GenerationConfig()) if name not in _DECIDED and not name.startswith("_")]


@functools.cache
def generation_fields() -> tuple[dataclasses.Field[Any], ...]:
    """Every argument that may be passed on, as a field without a value; types are read off transformers' docstring."""
    documented = dict(re.findall(r"^ {8}(\w+) \(`?(.*?)`?[,)]", GenerationConfig.__doc__ or "", flags=re.MULTILINE))
    found = []
    for name in names_of_arguments():
        words = documented.get(name, "")
        # a dictionary among the types: any JSON, or a word
        kind = list[str] | None if "list[str]" in words else _TYPES.get(words, dict[str, Any] | None)
        made: Any = dataclasses.field(default=None, metadata={"help": "see transformers.GenerationConfig"})
        made.name, made.type = name, kind
        found.append(made)
    return tuple(found)


def reads_prompt(config: GenerationConfig) -> bool:
    """Whether a setting looks at the tokens of the prompt: padding before it would change what is written."""
    return any(getattr(config, name, None) not in (None, 0, 1.0) for name in _READ_PROMPT)


def generation_config(arguments: Mapping[str, Any]) -> GenerationConfig:
    """The settings of a generation: greedy, unless the arguments say otherwise.

    Args:
        arguments: of `transformers.GenerationConfig`, by name.

    Raises:
        InputError: an argument that there is not or that cannot be chosen, a value that transformers refuses, or one
            that has no effect with the others, such as a temperature without do_sample.

    Example:
        >>> generation_config({"do_sample": True, "temperature": 0.7}).temperature
        0.7
    """
    known = names_of_arguments()
    for name in arguments:
        if name in _DECIDED:
            raise InputError(f"{name} cannot be chosen: {_DECIDED[name]}")
        if name not in known:
            near = meant(name, known)
            raise InputError(
                f"no argument of transformers.GenerationConfig: {name}" + (f"; did you mean {near}?" if near else "")
            )
    values = {"do_sample": False, **arguments}
    try:
        made = GenerationConfig(**values)
        made.validate(strict=True, user_set_attributes=set(values))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"transformers refuses these arguments: {first_lines(error)}") from error
    return made
