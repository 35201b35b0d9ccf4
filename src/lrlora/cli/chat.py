"""`lrlora chat`: a conversation on stdin and stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Optional

from transformers import GenerationConfig, TextStreamer, set_seed

from lrlora.cli.generation import load_model, parse_with_arguments, streamer_of, tell_if_cut
from lrlora.errors import InputError
from lrlora.generation.chat import Chat, interruptible
from lrlora.training import processes

_COMMANDS = "/reset begins a new chat, /system TEXT sets the system message, /quit or Ctrl-D ends"


@dataclass
class _More:
    system: Optional[str] = field(default=None, metadata={"help": "message of the system before the first of yours"})
    seed: int = field(default=0, metadata={"help": "of what --do_sample draws"})
    debug: bool = field(default=False, metadata={"help": "show a traceback on errors"})


def run(arguments: list[str]) -> None:
    """Answer every line of stdin, until its end."""
    example = "lrlora chat runs/demo --do_sample --temperature 0.7"
    chosen, config = parse_with_arguments(_More, "chat", arguments, example)
    if (config.num_beams or 1) > 1:
        raise InputError("lrlora chat prints an answer as it is written, which num_beams does not allow; leave it out")
    model = load_model(chosen)
    set_seed(chosen.seed)
    chat, is_terminal = Chat(model, config, chosen.system), sys.stdin.isatty()
    streamer = streamer_of(model)
    if is_terminal:
        processes.tell(f"{_COMMANDS}; Ctrl-C stops an answer")
    for line in _lines(is_terminal):
        try:
            if not _say(chat, line, streamer, config):
                break
        except InputError as error:
            # a script is told by the exit status
            if not is_terminal:
                raise
            processes.tell(str(error))


def _lines(is_terminal: bool) -> Iterator[str]:
    """Lines of stdin that are not empty; at a prompt where someone types them."""
    while True:
        try:
            line = input("> ") if is_terminal else sys.stdin.readline()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            processes.tell("/quit or Ctrl-D ends")
            continue
        if not line and not is_terminal:
            return
        if line.strip():
            yield line.strip()


def _say(chat: Chat, line: str, streamer: TextStreamer, config: GenerationConfig) -> bool:
    """Answer a line, or do what it says; whether the chat goes on."""
    word, _, rest = line.partition(" ")
    if word == "/quit":
        return False
    if word == "/reset":
        chat.reset()
    elif word == "/system":
        chat.system = rest.strip() or None
    elif word.startswith("/"):
        raise InputError(f"no command {word}: {_COMMANDS}")
    else:
        with interruptible() as stop:
            answer = chat.ask(line, streamer, stop)
        tell_if_cut(answer)
    return True
