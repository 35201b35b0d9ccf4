"""Where a verb is: in a file of this folder, or in the package peft_study, which depends on lrlora and not the reverse.

This file is the only one of lrlora that names peft_study, and it imports it by name when a verb asks for it: `lrlora
--help` stays fast, and a type checker sees no import of the other package.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

_STUDY, _RESULTS = "peft_study", "results.jsonl"


def module_of(verb: str) -> ModuleType:
    """The module with the flags and `run(arguments)` of a verb."""
    return of_studies("cli") if verb == "study" else importlib.import_module(f"lrlora.cli.{verb}")


def of_studies(name: str) -> ModuleType:
    """A module of the package peft_study."""
    return importlib.import_module(f"{_STUDY}.{name}")


def is_of_study(folder: str) -> bool:
    """Whether a folder holds the results of a study."""
    return (Path(folder).expanduser() / _RESULTS).exists()
