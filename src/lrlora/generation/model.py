"""A language model that answers prompts as it was trained to: its template, its precision, and where it stops."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList

from lrlora.data.embedded import model_folder
from lrlora.data.encode import Say, Template, encode_prompt, uses_chat
from lrlora.data.length import length_of_rows
from lrlora.data.render import Renderer
from lrlora.errors import InputError, first_lines
from lrlora.generation.options import MAX_NEW_TOKENS, names_of_arguments
from lrlora.saved.adapter import AdapterFolder, read_adapter
from lrlora.saved.base import BaseOptions
from lrlora.saved.identity import stamp_of_model
from lrlora.saved.load import load_adapter, load_base, tokenizer_of
from lrlora.saved.local import is_model, run_around
from lrlora.saved.run import RunFolder
from lrlora.saved.tokens import load_tokenizer, pad_token_id, settle_padding
from lrlora.training.model import is_bf16

_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Args:
        text: without the token that ended it.
        tokens: how many were generated, with that token.
        finish: "end" where the model ended it; "length" where max_new_tokens did; "stopped" by anything else.
    """

    text: str
    tokens: int
    finish: str


@dataclass(frozen=True)
class LanguageModel:
    """A causal model, its tokenizer, and how its prompts are written; made by `load`.

    Args:
        model: of transformers or PEFT, in evaluation mode.
        tokenizer: of the model.
        template: how requests are written, as in `lrlora train`.
        is_bf16: compute in bfloat16, as its training did.
        source: changes with every file that the model was read from.
    """

    model: Any
    tokenizer: Any
    template: Template = "auto"
    is_bf16: bool = False
    source: str = ""

    @property
    def is_chat(self) -> bool:
        """Whether requests are written with the tokenizer's chat template, and not with plain headings."""
        return uses_chat(self.tokenizer, self.template)

    def prompt(self, row: dict[str, Any]) -> tuple[str, list[int]]:
        """A row of `lrlora.data.prompts` as the text that the model reads, and in tokens.

        Raises:
            InputError: no text, a chat that the template refuses, or one that leaves the model no room for an answer.
        """
        text, ids = encode_prompt(row, Renderer(self.tokenizer, self.is_chat), self.tokenizer)
        if not ids:
            raise InputError("the prompt is empty; pass some text")
        if len(ids) >= self.length:
            raise InputError(f"the prompt has {len(ids)} tokens, and the model reads {self.length}; shorten it")
        return text, ids

    @property
    def length(self) -> int:
        """How many tokens prompt and answer may have together."""
        return length_of_rows(None, self.tokenizer, self.model)

    @property
    def ends(self) -> list[int]:
        """Tokens that end an answer: what ended one in training, the tokenizer's, and those that the base names."""
        learned = self._learned_end
        own = getattr(self.model.generation_config, "eos_token_id", None)
        found = [*(learned if len(learned) == 1 else ()), self.tokenizer.eos_token_id]
        found += own if isinstance(own, list) else [own]
        return sorted({token for token in found if token is not None})

    @property
    def _learned_end(self) -> list[int]:
        end = Renderer(self.tokenizer, self.is_chat).end()
        return self.tokenizer.encode(end, add_special_tokens=False) if end else []

    def generate(
        self, prompts: Sequence[list[int]], config: GenerationConfig, streamer: Any = None, stop: Any = None
    ) -> list[Answer]:
        """Answer prompts together; in float32 each answer is the one that its prompt gets alone.

        Args:
            prompts: tokens of each.
            config: as `lrlora.generation.options.generation_config` makes it; without max_new_tokens it is 256, or
                what the longest prompt leaves.
            streamer: of transformers, for a single prompt.
            stop: a stopping criterion of transformers.

        Raises:
            InputError: max_new_tokens that the model has no room for, or arguments that transformers refuses.
        """
        longest, config = max(map(len, prompts)), copy.deepcopy(config)
        room = self.length - longest
        if config.max_new_tokens is None:
            config.max_new_tokens = min(MAX_NEW_TOKENS, room)
        if config.max_new_tokens > room:
            raise InputError(
                f"a prompt of {longest} tokens leaves room for {room} new ones, of {self.length} that the model reads; "
                f"pass max_new_tokens {max(room, 1)} or fewer, or a shorter prompt"
            )
        ends, pad = self.ends, pad_token_id(self.tokenizer, self.model.config)
        config.eos_token_id, config.pad_token_id = ends, pad
        if len(learned := self._learned_end) > 1:
            given = config.stop_strings or []
            config.stop_strings = [*([given] if isinstance(given, str) else given), self.tokenizer.decode(learned)]
        # on the left: what is generated follows the prompt at once
        device = self.model.get_input_embeddings().weight.device
        ids = torch.tensor([[pad] * (longest - len(each)) + each for each in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts], device=device)
        more = {"streamer": streamer, "stopping_criteria": StoppingCriteriaList([] if stop is None else [stop])}
        try:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.is_bf16):
                written = self.model.generate(
                    input_ids=ids, attention_mask=mask, generation_config=config, tokenizer=self.tokenizer, **more
                )
        except (ValueError, TypeError, NotImplementedError) as error:
            raise InputError(f"transformers cannot generate with these arguments: {first_lines(error)}") from error
        return [self._answer(row, ends, config) for row in written[:, longest:].tolist()]

    def _answer(self, row: list[int], ends: list[int], config: GenerationConfig) -> Answer:
        """The tokens behind a prompt as text; what follows the end is padding."""
        end = next((place for place, token in enumerate(row) if token in ends), None)
        text = self.tokenizer.decode(row[:end], skip_special_tokens=True)
        if len(learned := self._learned_end) > 1 and text.endswith(mark := self.tokenizer.decode(learned)):
            return Answer(text.removesuffix(mark), len(row), "end")
        if end is not None:
            return Answer(text, end + 1, "end")
        return Answer(text, len(row), "length" if len(row) == config.max_new_tokens else "stopped")


@dataclass(frozen=True)
class Origin:
    """What a language model is read from, and how: known before its weights are; made by `origin_of`.

    Args:
        name: as in `load`.
        base: as there.
        saved: the adapter; None of a model on its own.
        options: how the base is loaded.
        template: how requests are written.
        is_bf16: compute in bfloat16, as its training did.
    """

    name: str
    base: str | None
    saved: AdapterFolder | None
    options: BaseOptions
    template: Template
    is_bf16: bool

    @functools.cached_property
    def source(self) -> str:
        """Changes with every file that the model is read from."""
        read = [self.name] if self.saved is None else [str(self.saved.folder), self.saved.base]
        return hashlib.sha256(repr([self.options, *map(stamp_of_model, read)]).encode()).hexdigest()[:16]


def origin_of(
    name: str,
    template: Template | None = None,
    options: Mapping[str, Any] | None = None,
    base: str | None = None,
) -> Origin:
    """What `load` would read; arguments as there.

    Raises:
        InputError: no such model, or one that is no language model.
    """
    name = model_folder(name)
    given = {key: value for key, value in (options or {}).items() if value is not None}
    if Path(name).expanduser().is_dir() and not is_model(name):
        saved = read_adapter(name, base)
        if saved.kind != "causal":
            raise InputError(f"{name} is of task {saved.config.get('task_type')}, needed a language model (CAUSAL_LM)")
        how = dataclasses.replace(saved.options, **given)
        how.check(saved.base)
        settings = next((RunFolder(run).settings for run in run_around(saved.folder)), {})
    else:
        if base is not None:
            raise InputError(f"{name} is a model on its own; leave --base out, which is for adapters")
        saved, how, settings = None, BaseOptions(**given), {}
        how.check(name)
    written: Any = template or settings.get("template", "auto")
    return Origin(name, base, saved, how, written, is_bf16(settings.get("precision", "auto")))


def load(
    name: str,
    template: Template | None = None,
    options: Mapping[str, Any] | None = None,
    base: str | None = None,
    say: Say = lambda line: None,
) -> LanguageModel:
    """A language model from a run, an adapter folder, a merged or exported folder, or the name of a base.

    Args:
        name: a folder, a name on the hub, or embedded-decoder.
        template: how requests are written; None: as in the run, "auto" where there is none.
        options: fields of `lrlora.saved.base.BaseOptions` in the place of the run's; None leaves a field.
        base: base model of an adapter; None means the one that the adapter names.
        say: gets a line for what the user should know.

    Raises:
        InputError: no such model, one that is no language model, or weights that its files do not hold.

    Example:
        load("runs/chat").generate([tokens], generation_config({}))[0].text
    """
    origin = origin_of(name, template, options, base)
    name, how = origin.name, origin.options
    if origin.saved is not None:
        model, tokenizer = load_adapter(name, base, how), tokenizer_of(origin.saved)
    else:
        model, tokenizer = load_base(name, "CAUSAL_LM", None, how).eval(), load_tokenizer(name, how)
        if model.new_parameters:
            raise InputError(
                f"{name} lacks {model.new_parameters[0]} ({len(model.new_parameters)} such tensors), which would be "
                "random; pass a language model"
            )
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} does not tell which token is where; pass a fast tokenizer's folder"
        )
    settle_padding(model, tokenizer)
    _settle_defaults(model, say)
    if torch.cuda.is_available() and how.device_map is None and how.quantization == "none":
        model.to("cuda")
    made = LanguageModel(model, tokenizer, origin.template, origin.is_bf16, origin.source)
    how_written = "the chat template" if made.is_chat else "plain headings (### Instruction: ... ### Response:)"
    say(f"requests are written with {how_written}; answers end at {', '.join(_names(made))}")
    return made


def _names(model: LanguageModel) -> list[str]:
    return [repr(token) for token in model.tokenizer.convert_ids_to_tokens(model.ends)]


def _settle_defaults(model: Any, say: Say) -> None:
    """Leave of a model's generation_config.json its special tokens: transformers would take the rest in silence."""
    holder = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = holder.generation_config
    changed = {name: value for name in names_of_arguments() if (value := getattr(own, name, None)) not in (None, False)}
    changed.pop("use_cache", None)
    if changed:
        listed = ", ".join(f"{name} {value}" for name, value in changed.items())
        say(f"the generation_config.json of the base is not used: {listed}; pass what you want of it")
    plain = GenerationConfig(**{name: getattr(own, name, None) for name in _SPECIAL})
    holder.generation_config = model.generation_config = plain
