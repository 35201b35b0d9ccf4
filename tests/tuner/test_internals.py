"""The table in `tuner/internals.py` is what lrlora and peft_study use of PEFT beyond its documented classes."""

import ast
import inspect
import re
from pathlib import Path

from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.quantization_utils import QuantizationBackend
from torch import nn

import lrlora.tuner
from lrlora.tuner import internals
from tests.test_layering import files

SOURCE = Path(lrlora.__path__[0]).parent
# whose public names are documented
CLASSES = (BaseTuner, BaseTunerLayer, AuxiliaryTrainingWrapper, PeftModel, PeftConfig)


def names_of(cls: type) -> set[str]:
    """What a PEFT class or one of its parents in PEFT defines or declares, and no nn.Module has."""
    parents = [parent for parent in cls.__mro__ if parent.__module__.split(".")[0] == "peft"]
    found = {name for parent in parents for name in {**vars(parent), **inspect.get_annotations(parent)}}
    return {name for name in found if not name.startswith(("__", "_abc_")) and not hasattr(nn.Module, name)}


NAMES = set().union(*map(names_of, CLASSES))
PRIVATE = {name for name in NAMES if name.startswith("_")} | names_of(QuantizationBackend)
"""The private names, and all of a class that PEFT does not document."""


def overridden(cls: type) -> set[tuple[str, str]]:
    """(file, name) of what our subclasses of a PEFT class define and PEFT's classes know."""
    found = set()
    for own in [own for each in cls.__subclasses__() for own in [each, *each.__subclasses__()]]:
        if own.__module__.split(".")[0] in ("lrlora", "peft_study"):
            file = Path(inspect.getfile(own)).relative_to(SOURCE).as_posix()
            found |= {(file, name) for name in vars(own) if name in NAMES}
    return found


def used() -> set[tuple[str, str]]:
    """(file, name) of every override and of every private attribute, read, called or set, by its name or in a text."""
    found = overridden(BaseTuner) | overridden(BaseTunerLayer)
    for file in set(files()) - {Path(internals.__file__)}:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = getattr(node, "attr", None) or getattr(node, "value", None)
            if isinstance(node, ast.Attribute | ast.Constant) and isinstance(name, str) and name in PRIVATE:
                found.add((file.relative_to(SOURCE).as_posix(), name))
    return found


def listed() -> set[tuple[str, str]]:
    """(file, name) of the table in the docstring: a line with a file, and indented below it lines of names."""
    found, file = set(), ""
    for line in (internals.__doc__ or "").splitlines():
        if re.fullmatch(r" {4}\S+\.py", line):
            file = line.strip()
        elif line.startswith(" " * 8):
            found |= {(file, name) for name in re.findall(r"\w+", line)}
    return found


def test_the_table_lists_what_is_overridden_and_what_is_private():
    found, said = used(), listed()
    assert found - said == set(), "used, and not in the table of tuner/internals.py"
    assert said - found == set(), "in the table of tuner/internals.py, and not used"
