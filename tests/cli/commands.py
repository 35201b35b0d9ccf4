"""The command, run in this process."""

import re

import pytest

from lrlora.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command."""
    status = main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def quick(model, data, out, *more: str) -> list[str]:
    """Words of a run of two steps; flags in `more` take the place of those here."""
    flags = {"--model": str(model), "--data": str(data), "--out": str(out), "--max_steps": "2", "--r": "2"}
    return ["train", *(word for flag in flags.items() if flag[0] not in more for word in flag), *more]


def match(pattern: str, text: str) -> None:
    assert re.search(pattern, text), text
