"""From the words of a command line to a verb, and from its errors to one line and an exit status."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import os
import signal
import sys
import time
import traceback

from lrlora.cli import verbs
from lrlora.errors import InputError

VERBS = {
    "train": "train an adapter: a run folder with adapter, metrics and learned ranks",
    "ranks": "the learned rank of every layer of a saved adapter",
    "evaluate": "the task metric of the base, the adapter, and what it is merged or exported to",
    "generate": "what a run, an adapter or a model writes after a prompt, or after every prompt of a file",
    "chat": "a conversation with a run, an adapter or a model, on stdin and stdout",
    "merge": "a checkpoint of plain transformers: the update added to the base's weights",
    "export": "a plain LoRA adapter, and what it loses",
    "report": "one HTML page: the learned ranks of runs, their baselines, and how sure they are",
    "study": "compare methods on tasks, each tuned by the same budget, over seeds",
}
"""Every verb and what it does; `lrlora.cli.verbs.module_of` finds the file with its flags and `run(arguments)`."""

USAGE = (
    "usage: lrlora VERB [flags]\n\n"
    + "".join(f"  {verb:<8}  {what}\n" for verb, what in VERBS.items())
    + "\n`lrlora VERB --help` lists the flags of a verb. Without any, `lrlora train` runs the demo:\n\n  lrlora train\n"
)

# import names of what an extra brings
_EXTRA_OF = {
    **dict.fromkeys(("datasets", "matplotlib", "rich", "scipy", "sklearn", "yaml", "PIL"), "train"),
    **dict.fromkeys(("jinja2", "plotly"), "report"),
    **dict.fromkeys(("lm_eval",), "study"),
    "ray": "cluster",
}
_TASKS = ("datasets", "rich", "scipy", "sklearn")
_NEEDS = {
    "train": (*_TASKS, "matplotlib"),
    "ranks": ("rich", "scipy"),
    "evaluate": _TASKS,
    "generate": ("datasets",),
    "chat": (),
    "merge": ("rich",),
    "export": ("rich",),
    "report": ("scipy", "jinja2", "plotly"),
    "study": (*_TASKS, "yaml"),
}
"""What a verb needs besides the package's own dependencies; some flags, and some tasks of a study, need more."""

# files of our own come to an error with their name, by lrlora.files
_NO_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF)

_OUT_OF_MEMORY = {
    "train": "lower --batch_size (and raise --gradient_accumulation by as much), or --max_length, or pass "
    "--gradient_checkpointing",
    "evaluate": "lower --batch_size",
    "generate": "lower --batch_size or --max_new_tokens, or pass --dtype bfloat16",
    "chat": "/reset earlier, or pass --dtype bfloat16",
    "study": "lower batch_size in the study file, or --workers",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a verb.

    Returns:
        The exit status: 0, or the verb's; 2 for an error of the user's input, 1 for one of ours; 130 for Ctrl-C, 143
        for SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if sys.stderr is None:
        # else print would send warnings to stdout
        sys.stderr = open(os.devnull, "w")
    if sys.stdout is None:
        return _complain(InputError("stdout is closed: no result could be shown; send it to a file"), 2, False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # names of files may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _status_of(arguments)
        finally:
            # what is still in the buffer would fail after the last line of Python
            sys.stdout.flush()
    except BrokenPipeError:
        # the reader of our output, such as `head`, has ended
        _drop_output()
        return 0
    except OSError as error:
        _drop_output()
        return _complain(InputError(f"cannot write to stdout: {error.strerror}"), 2, False)


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _status_of(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        from lrlora import __version__

        print(__version__)
        return 0
    verb, is_debugging = arguments[0], "--debug" in arguments
    try:
        if verb not in VERBS:
            raise InputError(f"no verb {verb!r}; there are: {', '.join(VERBS)}")
        _check_surroundings(verb, arguments)
        # a verb is imported when it is asked for: another one's extras need not be installed
        return verbs.module_of(verb).run(arguments[1:]) or 0
    except InputError as error:
        return _complain(error, 2, is_debugging)
    except KeyboardInterrupt as error:
        return _interrupted(verb, error)
    except BrokenPipeError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in _NO_OUTPUT:
            # a full disk under stdout, met in the middle; main says so
            raise
        return _explain(verb, error, is_debugging)


def _check_surroundings(verb: str, arguments: list[str]) -> None:
    """Refuse before any work what would fail at its end.

    Raises:
        InputError: an extra is not installed, or a verb of one process is started in several.
    """
    if {"-h", "--help"} & set(arguments):
        return
    if verb != "train" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"lrlora {verb} runs in one process; start it without torchrun")
    for module in _NEEDS[verb]:
        if importlib.util.find_spec(module) is None:
            raise InputError(_missing(verb, module))


def _missing(verb: str, module: str) -> str:
    return f'lrlora {verb} needs {module}, which is not installed: pip install "lrlora[{_EXTRA_OF[module]}]"'


def _interrupted(verb: str, error: KeyboardInterrupt) -> int:
    left = "nothing was written"
    if verb == "study":
        left = "the same command goes on with the cells that are not finished"
    number = getattr(error, "number", signal.SIGINT)
    _print_error(f"stopped by {signal.Signals(number).name}; {error if str(error) else left}")
    return _once_the_first_has_spoken(128 + number)


def _explain(verb: str, error: Exception, is_debugging: bool) -> int:
    """An error that is not an InputError: the machine's, or ours."""
    module = getattr(error, "name", None)
    if isinstance(error, ModuleNotFoundError) and module in _EXTRA_OF:
        return _complain(InputError(_missing(verb, module)), 2, is_debugging)
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError) or "allocate memory" in str(error):
        advice = _OUT_OF_MEMORY.get(verb, "run it where there is more")
        first = str(error).strip().split("\n")[0][:200]
        return _complain(InputError(f"out of memory{': ' + first if first else ''}; {advice}"), 2, is_debugging, True)
    if isinstance(error, UnicodeEncodeError) and "surrogates" in str(error):
        return _complain(InputError("a path is not UTF-8, which not all files here can have; rename it, or set "
                                    "LC_ALL=C.UTF-8"), 2, is_debugging)  # fmt: skip
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str):
        return _complain(InputError(f"{error.filename}: {error.strerror}"), 2, is_debugging)
    return _complain(error, 1, is_debugging)


def _complain(error: Exception, status: int, is_debugging: bool, is_of_one: bool = False) -> int:
    """Print an error; one that every process of several has is printed only by the first."""
    if is_debugging:
        traceback.print_exc()
    message = " ".join(str(error).split()) or type(error).__name__
    hint = "" if status == 2 or is_debugging else " (an error of lrlora or below it: run again with --debug)"
    name = "" if status == 2 else f"{type(error).__name__}: "
    _print_error(f"{name}{message}{hint}", status == 1 or is_of_one)
    return _once_the_first_has_spoken(status)


def _print_error(message: str, is_of_one: bool = False) -> None:
    rank = os.environ.get("RANK", "0")
    if rank == "0" or is_of_one:
        process = "" if rank == "0" else f"process {rank}: "
        # where stderr is full nothing can be printed
        with contextlib.suppress(OSError):
            print(f"lrlora: {process}{message}", file=sys.stderr, flush=True)


def _once_the_first_has_spoken(status: int) -> int:
    if os.environ.get("RANK", "0") != "0":
        # torchrun ends all processes once one has failed: the first shall be the one that says why
        time.sleep(5)
    return status
