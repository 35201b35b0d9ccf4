"""From a dataclass to flags: its fields are the flags, their defaults and their help."""

from __future__ import annotations

from typing import NoReturn, TypeVar

from lrlora.errors import InputError

Arguments = TypeVar("Arguments")


def parse(
    cls: type[Arguments], verb: str, arguments: list[str], example: str, positional: str | None = None
) -> Arguments:
    """Read the flags of a verb.

    Args:
        cls: dataclass whose fields are the flags.
        verb: name of the verb.
        arguments: words of the command line after the verb.
        example: a line to paste, at the end of the help.
        positional: field that takes the words before the first flag.

    Raises:
        InputError: a flag or a value that does not exist.
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

    def refuse(message: str) -> NoReturn:
        if positional is not None and f"required: --{positional}" in message:
            message = f"which {positional}? it comes before the flags: {example}"
        raise InputError(f"{message}; see lrlora {verb} --help")

    parser.error = refuse
    chosen, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unknown:
        refuse(f"no such flag: {unknown[0]}")
    return chosen


def quiet_libraries() -> None:
    """Keep what transformers, datasets and the like say about themselves out of the verb's output."""
    import logging
    import warnings

    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("httpx").setLevel(logging.ERROR)
