"""From a dataclass to flags: its fields are the flags, their defaults and their help."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from lrlora.errors import InputError, meant

Arguments = TypeVar("Arguments")


def parse(
    cls: type[Arguments],
    verb: str,
    arguments: list[str],
    example: str,
    positional: str | None = None,
    words_of_file: Callable[[str], list[str]] | None = None,
    why_not: Callable[[str], str | None] = lambda name: None,
    more: str = "",
    heading: str = "arguments of the trainer",
) -> Arguments:
    """Read the flags of a verb.

    Args:
        cls: dataclass whose fields are the flags; one named as a word of Python ends in "_", its flag is an alias.
        verb: name of the verb.
        arguments: words of the command line after the verb.
        example: a line to paste, at the end of the help.
        positional: field that takes the words before the first flag.
        words_of_file: gives the flags that a file passed as --config stands for; those that are typed override them.
        why_not: says of a name why it is no flag.
        more: a paragraph of the help, about the flags that it does not list one by one.
        heading: of that paragraph.

    Raises:
        InputError: a flag or a value that does not exist, or a flag that is there twice.
    """
    from transformers import HfArgumentParser

    if positional is not None and arguments and not arguments[0].startswith("-"):
        arguments = [f"--{positional}", *arguments]
    parser = HfArgumentParser(
        cls,  # pyright: ignore[reportArgumentType]
        prog=f"lrlora {verb}",
        epilog=f"example: {example}",
        allow_abbrev=False,
    )

    for action in parser._actions:
        if action.dest.endswith("_"):
            action.option_strings, action.metavar = [f"--{action.dest[:-1]}"], action.dest[:-1].upper()
    if more:
        parser.add_argument_group(heading, more)

    def refuse(message: str) -> NoReturn:
        if positional is not None and f"required: --{positional}" in message:
            message = f"which {positional}? it comes before the flags: {example}"
        raise InputError(f"{message}; see lrlora {verb} --help")

    parser.error = refuse
    if {"-h", "--help"} & set(arguments):
        # argparse would be content with a stdout that takes nothing
        print(_help_of(parser, positional), end="")
        raise SystemExit(0)
    names = [field.name.removesuffix("_") for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    check_flags(names, arguments, refuse, why_not)
    if words_of_file is not None and (file := parser.parse_known_args(arguments)[0].config):
        arguments = [*words_of_file(file), *arguments]
    # no file next to the script is read: a command is what was typed
    chosen, unknown = parser.parse_args_into_dataclasses(
        arguments, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        refuse(f"not a flag, nor a value of one: {unknown[0]!r}")
    return chosen


def _help_of(parser: Any, positional: str | None) -> str:
    """The help of a verb, in which what comes before the flags is no flag."""
    if positional is not None:
        action = next(action for action in parser._actions if action.dest == positional)
        parser._actions.remove(action)
        for group in parser._action_groups:
            if action in group._group_actions:
                group._group_actions.remove(action)
        name = positional.upper()
        words = f"{name.removesuffix('S')} ..." if action.nargs == "+" else name
        parser.prog = f"{parser.prog} {words}"
        # written down before the name is one of its arguments, which argparse would put at the end
        parser.usage = parser.format_usage().removeprefix("usage: ").rstrip()
        parser.add_argument_group("before the flags").add_argument(words, help=action.help)
        parser._action_groups.insert(0, parser._action_groups.pop())
    return parser.format_help()


def check_flags(
    names: list[str],
    arguments: list[str],
    refuse: Callable[[str], NoReturn],
    why_not: Callable[[str], str | None] = lambda name: None,
) -> None:
    """Refuse a flag that does not exist, with the one that was perhaps meant, and one that is there twice."""
    given = [word[2:].split("=")[0] for word in arguments if word.startswith("--") and len(word) > 2]
    flags = [flag.replace("-", "_") for flag in given]
    for flag, name in zip(given, flags, strict=True):
        if name not in names:
            why, near = why_not(name), meant(name, names)
            more = f": {why}" if why else f"; did you mean --{near}?" if near else ""
            refuse(f"no such flag: --{flag}{more}")
        if flags.count(name) > 1:
            refuse(f"--{flag} is there twice; pass it once")


def quiet_libraries() -> None:
    """Keep what transformers, datasets and the like say about themselves out of the verb's output.

    Of several processes that torchrun has started only the first one gives warnings.
    """
    import importlib.util
    import logging
    import warnings

    import transformers

    from lrlora.training import processes

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if importlib.util.find_spec("datasets"):
        import datasets

        datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("httpx").setLevel(logging.ERROR)
    if not processes.is_first():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
