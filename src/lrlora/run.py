"""`python -m lrlora.run TOOL ARGS...`: import lrlora, then run a tool that knows nothing of it, in the same process.

PEFT finds a method only in a process that has imported it. A tool that loads adapters with PEFT, such as lm-eval,
takes an LR-LoRA adapter once something has imported lrlora before. This does that and nothing else: no function of
the tool or of PEFT is replaced for it. What `import lrlora` itself does is the same as in any script.

    python -m lrlora.run lm_eval --model hf --model_args pretrained=BASE,peft=ADAPTER ...   # a command, by its name
    python -m lrlora.run -m trl.scripts.sft ...                                             # a module
    python -m lrlora.run train.py ...                                                       # a script

The tool sees the argv, the sys.path and the `__main__` that it would see without lrlora. Processes that the tool
forks know LR-LoRA; a new Python that it starts does not. A launcher therefore comes first:

    accelerate launch -m lrlora.run train.py ...
    torchrun --nproc_per_node 2 -m lrlora.run train.py ...
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import runpy
import shutil
import sys

import lrlora
from lrlora.errors import InputError, meant

USAGE = """usage: python -m lrlora.run [-m] TOOL ARGS...

  TOOL       the name of an installed Python command, such as lm_eval, or a script that ends in .py
  -m TOOL    a module, as after python -m

Imports lrlora, then runs the tool in this process: PEFT knows LR-LoRA there.
"""
LAUNCHERS = ("accelerate", "accelerate-launch", "deepspeed", "torchrun", "trl")
"""Commands that start a new Python for the work."""


def main(arguments: list[str] | None = None) -> object:
    """Run the tool that the arguments name.

    Returns:
        What the function of a command returns, as an exit status; None from a module or a script.

    Raises:
        InputError: no such tool, or one that is no Python command.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "-m":
        if len(arguments) == 1:
            raise InputError("python -m lrlora.run -m needs the name of a module")
        return _module(arguments[1], arguments[2:])
    if arguments[0].startswith("-"):
        raise InputError(f"TOOL comes first, got {arguments[0]}; flags of the tool stand after its name")
    tool, own = arguments[0], arguments[1:]
    return _script(tool, own) if tool.endswith(".py") else _command(tool, own)


def _module(name: str, arguments: list[str]) -> None:
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise InputError(f"no module named {name}; python -m lrlora.run -m takes what python -m takes")
    _tell(f"module {name}")
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _script(path: str, arguments: list[str]) -> None:
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such script; a module is named after -m, without .py")
    _tell(f"script {path}")
    sys.argv = [path, *arguments]
    _first_on_path(os.path.dirname(os.path.realpath(path)))
    runpy.run_path(path, run_name="__main__")


def _command(name: str, arguments: list[str]) -> object:
    commands = importlib.metadata.entry_points(group="console_scripts")
    # a distribution may name one function twice, and an installation in two places lists it twice
    targets = {point.value: point for point in commands.select(name=name)}
    if len(targets) > 1:
        raise InputError(
            f"several packages bring a command {name} ({', '.join(sorted(targets))}); pass -m with the module of the "
            "one that is meant"
        )
    where = shutil.which(name)
    if not targets:
        raise InputError(_no_command(name, where, commands.names))
    point = next(iter(targets.values()))
    _tell(f"command {name} ({point.value})")
    if name in LAUNCHERS:
        _say(
            f"warning: {name} starts new Python processes, which do not import lrlora; to run yours with it: "
            "accelerate launch -m lrlora.run TOOL ..., or torchrun -m lrlora.run TOOL ..."
        )
    sys.argv = [where or name, *arguments]
    _first_on_path(os.path.dirname(sys.argv[0]) if where else None)
    return point.load()()


def _no_command(name: str, where: str | None, known: set[str]) -> str:
    if where is not None:
        return (
            f"{name} ({where}) is no command of a package of this Python ({sys.executable}); call it there, or pass -m"
        )
    if importlib.util.find_spec(name.partition(".")[0]) is not None:
        return f"no command {name} in this Python; there is a module of that name: python -m lrlora.run -m {name}"
    near = meant(name, sorted(known))
    hint = f"; did you mean {near}?" if near else f"; is it installed for {sys.executable}?"
    return f"no command {name} in this Python{hint}"


def _first_on_path(folder: str | None) -> None:
    """The folder of the tool in place of the current one, which `python -m` puts first."""
    if sys.flags.safe_path:
        return
    sys.path[:1] = [] if folder is None else [folder]


def _tell(what: str) -> None:
    # as lrlora.training.processes.is_first, whose room would import all that training needs
    if os.environ.get("RANK", "0") == "0":
        peft = importlib.metadata.version("peft")
        _say(f"{what}, with lrlora {lrlora.__version__} and peft {peft}")


def _say(line: str) -> None:
    print(f"lrlora.run: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        status = main()
    except InputError as error:
        _say(str(error))
        status = 2
    sys.exit(status)  # pyright: ignore[reportArgumentType]
