"""A conversation with a model: what was said so far, written by the tokenizer's chat template."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria

from lrlora.errors import InputError
from lrlora.generation.model import Answer, LanguageModel


class Chat:
    """Messages and answers in turn.

    Args:
        model: as `lrlora.generation.model.load` returns it.
        config: as `generation_config` makes it.
        system: a first message of the system; None leaves it to the template.

    Example:
        chat = Chat(load("runs/chat"), generation_config({}))
        chat.ask("Name a colour.").text
    """

    def __init__(self, model: LanguageModel, config: GenerationConfig, system: str | None = None) -> None:
        self._model, self._config = model, config
        self.system, self._said = system, []

    def reset(self) -> None:
        """Forget all messages but the system's."""
        self._said = []

    def ask(self, text: str, streamer: Any = None, stop: Any = None) -> Answer:
        """Answer a message, and keep both.

        Args:
            text: of the user.
            streamer: as in `LanguageModel.generate`.
            stop: as there.

        Raises:
            InputError: a second message to a model without a chat template, or a chat that is too long for it;
                nothing is kept then.
        """
        if self._said and not self._model.is_chat:
            raise InputError(
                "this model's tokenizer has no chat template, or it is not used (template plain), so only one message "
                "can be answered; begin a new chat with /reset, or take a model that was trained on chats"
            )
        said = [*self._said, {"role": "user", "content": text}]
        first = [{"role": "system", "content": self.system}] if self.system else []
        try:
            _, ids = self._model.prompt(row_of([*first, *said]))
        except InputError as error:
            raise InputError(f"{error}{'; /reset begins a new chat' if self._said else ''}") from error
        (answer,) = self._model.generate([ids], self._config, streamer, stop)
        self._said = [*said, {"role": "assistant", "content": answer.text}]
        return answer


def row_of(messages: Sequence[dict[str, str]]) -> dict[str, str]:
    """Messages, "role" and "content" of each, as a row for `LanguageModel.prompt`."""
    # an answer of before is read as it is: weight 1 lets it be written as training wrote it
    weighted = [{**each, "weight": int(each["role"] == "assistant")} for each in messages]
    return {"messages": json.dumps(weighted, ensure_ascii=False), "tools": ""}


class Interruption(StoppingCriteria):
    """Ends an answer after the token that is being generated, once it was asked to."""

    def __init__(self) -> None:
        self.is_asked = False

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Whether each row is to end."""
        return torch.full((input_ids.shape[0],), self.is_asked, device=input_ids.device, dtype=torch.bool)


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """A stopping criterion that Ctrl-C turns on; a second Ctrl-C raises KeyboardInterrupt as always."""
    stop = Interruption()
    if threading.current_thread() is not threading.main_thread():
        # only the main thread gets signals
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_asked:
            raise KeyboardInterrupt
        stop.is_asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
