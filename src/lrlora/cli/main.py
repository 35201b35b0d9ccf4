"""From the words of a command line to a verb, and from its errors to one line and an exit status."""

from __future__ import annotations

import importlib
import os
import sys
import traceback

from lrlora.errors import InputError

VERBS = {
    "train": "train an adapter: a run folder with adapter, metrics and learned ranks",
    "ranks": "the learned rank of every layer of a saved adapter",
    "evaluate": "the task metric of the base, the adapter, and what it is merged or exported to",
    "merge": "a checkpoint of plain transformers: the update added to the base's weights",
    "export": "a plain LoRA adapter, and what it loses",
    "report": "one HTML page: the learned ranks of runs beside their nulls, and how sure they are",
    "study": "compare methods on tasks, each tuned by the same budget, over seeds",
}
"""Every verb and what it does; the file of its name beside this one holds its flags and `run(arguments)`."""

USAGE = (
    "usage: lrlora VERB [flags]\n\n"
    + "".join(f"  {verb:<8}  {what}\n" for verb, what in VERBS.items())
    + "\n`lrlora VERB --help` lists the flags of a verb. Without any, `lrlora train` runs the demo:\n\n  lrlora train\n"
)

# verbs whose result is there at the end or not at all
_WHOLE_OR_NOTHING = ("merge", "export", "evaluate", "ranks")

# import names of what an extra brings
_EXTRA_OF = {
    **dict.fromkeys(("accelerate", "datasets", "matplotlib", "rich", "scipy", "sklearn"), "train"),
    **dict.fromkeys(("jinja2", "plotly"), "report"),
    **dict.fromkeys(("lm_eval", "yaml"), "study"),
    "ray": "cluster",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; the exit status is 0, or the verb's; 2 for an error of the user's input, 1 for one of ours, 130 for
    Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        from lrlora import __version__

        print(__version__)
        return 0
    is_debugging = "--debug" in arguments
    try:
        if arguments[0] not in VERBS:
            raise InputError(f"no verb {arguments[0]!r}; there are: {', '.join(VERBS)}")
        # a verb is imported when it is asked for: another one's extras need not be installed
        return importlib.import_module(f"lrlora.cli.{arguments[0]}").run(arguments[1:]) or 0
    except InputError as error:
        return _complain(error, 2, is_debugging)
    except KeyboardInterrupt:
        left = (
            "nothing was written"
            if arguments[0] in _WHOLE_OR_NOTHING
            else "the same command goes on from the last checkpoint"
        )
        print(f"lrlora: interrupted; {left}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of our output, `head` say, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get(error.name or "")
        if extra is None:
            return _complain(error, 1, is_debugging)
        needed = f'lrlora {arguments[0]} needs {error.name}: pip install "lrlora[{extra}]"'
        return _complain(InputError(needed), 2, is_debugging)
    except Exception as error:
        return _complain(error, 1, is_debugging)


def _complain(error: Exception, status: int, is_debugging: bool) -> int:
    if is_debugging:
        traceback.print_exc()
    message = " ".join(str(error).split()) or type(error).__name__
    hint = "" if status == 2 or is_debugging else " (an error of lrlora or below it: run again with --debug)"
    name = "" if status == 2 else f"{type(error).__name__}: "
    print(f"lrlora: {name}{message}{hint}", file=sys.stderr)
    return status
