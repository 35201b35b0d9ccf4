"""What the flags of `lrlora generate` and `lrlora chat` have in common: the model, and transformers' own arguments."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, Optional

from transformers import GenerationConfig, TextStreamer

from lrlora.cli.flags import parse, quiet_libraries
from lrlora.cli.settings import flags_of, values_of
from lrlora.cli.show import tell_of_changes
from lrlora.data.embedded import model_folder
from lrlora.generation import Answer, LanguageModel, generation_config, load
from lrlora.generation.options import generation_fields, names_of_arguments, why_not
from lrlora.saved.base import BaseOptions
from lrlora.training import processes
from lrlora.training.fields import typed_fields


@dataclass
class ModelFlags:
    """Flags that say which model writes, and how it is loaded."""

    model: str = field(
        metadata={"help": "a run, an adapter folder, a merged or exported folder, or a base: a folder, a name on the "
                          "hub or embedded-decoder"}
    )  # fmt: skip
    base: Optional[str] = field(
        default=None, metadata={"help": "base model of an adapter; the one that it names if left out"}
    )
    template: Optional[Literal["auto", "chat", "plain"]] = field(
        default=None,
        metadata={"help": "how requests are written: the chat template, or plain headings; as in the run if left out"},
    )
    dtype: Optional[str] = field(default=None, metadata={"help": "as in lrlora train; the run's if left out"})
    quantization: Optional[str] = field(default=None, metadata={"help": "as in lrlora train; the run's if left out"})
    device_map: Optional[str] = field(
        default=None, metadata={"help": "as in lrlora train; a GPU where there is one if left out"}
    )
    revision: Optional[str] = field(default=None, metadata={"help": "as in lrlora train; the run's if left out"})
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "run Python files that come with the base: code of strangers, with your rights"},
    )


def parse_with_arguments(cls: type, verb: str, arguments: list[str], example: str) -> tuple[Any, GenerationConfig]:
    """The flags of a verb that generates, and the settings of the generation.

    Args:
        cls: dataclass of the verb's further flags.
        verb: as in `lrlora.cli.flags.parse`.
        arguments: as there.
        example: as there.

    Raises:
        InputError: as `parse` and `generation_config`.
    """
    quiet_libraries()
    passed = generation_fields()
    flags = parse(
        flags_of("Arguments", [*typed_fields(ModelFlags), *passed], typed_fields(cls), hidden=passed),
        verb,
        arguments,
        example,
        positional="model",
        why_not=why_not,
        more="transformers.GenerationConfig has these; each is a flag under its own name, and an answer is greedy and "
        f"of at most 256 tokens without any: {', '.join(sorted(names_of_arguments()))}",
        heading="arguments of the generation",
    )
    return flags, generation_config({name: v for name, v in values_of(flags, passed).items() if v is not None})


def streamer_of(model: LanguageModel) -> TextStreamer:
    """Prints an answer as it is written, without the prompt and the token that ends it."""
    return TextStreamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True)


def tell_if_cut(answer: Answer) -> None:
    """Say it where an answer did not come to its end."""
    if answer.finish == "length":
        processes.tell(f"cut at {answer.tokens} tokens; --max_new_tokens allows more")


def load_model(flags: Any) -> LanguageModel:
    """The model that the flags name; says how its prompts are written."""
    options = {each.name: getattr(flags, each.name) or None for each in dataclasses.fields(BaseOptions)}
    made = load(flags.model, flags.template, options, flags.base, processes.tell)
    tell_of_changes([model_folder(flags.model)])
    return made
