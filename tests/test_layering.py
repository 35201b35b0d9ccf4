"""Each room of the house imports only the rooms above it, and PEFT comes in by one door."""

import ast
import re
from pathlib import Path

import pytest

import lrlora
from lrlora.saved import names

SOURCE = Path(lrlora.__file__).parent
ROOMS = [
    "errors", "files", "statistics", "method", "ops", "tuner", "ranks", "data", "saved", "evaluation", "training",
    "export", "study", "report", "cli",
]  # fmt: skip
"""From the top down: a room may import those that stand before it."""
PEFT_ROOMS = ("tuner", "saved", "training", "export", "study")
"""Rooms that import peft."""


def imports_of(file: Path) -> set[str]:
    """Modules that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("file", files(), ids=lambda f: str(f.relative_to(SOURCE)))
def test_a_room_imports_only_what_stands_above_it(file):
    room = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    for name in imports_of(file):
        parts = name.split(".")
        if parts[0] == "lrlora" and len(parts) > 1 and parts[1] in ROOMS:
            assert ROOMS.index(parts[1]) <= ROOMS.index(room), f"{room} imports {name}"


def test_the_method_imports_torch_alone():
    allowed = {"torch", "lrlora", "math", "typing", "dataclasses", "__future__", "jaxtyping"}
    for file in (SOURCE / "method").glob("*.py"):
        assert {name.split(".")[0] for name in imports_of(file)} <= allowed, file


def test_what_of_peft_is_not_public_is_imported_in_one_file():
    for file in files():
        inner = {name for name in imports_of(file) if name.startswith(("peft.tuners", "peft.utils", "peft.mapping"))}
        assert not inner or file == SOURCE / "tuner" / "internals.py", (file, inner)
        peft = {name for name in imports_of(file) if name.split(".")[0] == "peft"}
        assert not peft or file.relative_to(SOURCE).parts[0] in ("tuner", "saved", "training", "export", "study"), (
            file,
            peft,
        )


def test_files_stay_readable():
    long = {file.name: len(file.read_text().splitlines()) for file in files()}
    assert {name: lines for name, lines in long.items() if lines > 310} == {}


def module_of(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def needs(file: Path, known: set[str]) -> set[str]:
    """Modules that must be there before a file can be imported: what it imports outside functions."""
    found, nodes = set(), list(ast.parse(file.read_text(encoding="utf-8")).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes += list(ast.iter_child_nodes(node))
    return (found & known) - {module_of(file)}


def test_no_module_imports_itself_through_others():
    known = {module_of(file): file for file in files()}
    left = {name: needs(file, set(known)) for name, file in known.items()}
    # take away what needs nothing that is left, until nothing changes: what stays imports itself
    while ready := {name for name, wanted in left.items() if not wanted & left.keys()}:
        left = {name: wanted for name, wanted in left.items() if name not in ready}
    assert not left, {name: wanted & left.keys() for name, wanted in left.items()}


def strings_of(file: Path) -> set[str]:
    """The strings that a file works with: those of its code, and not its docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said
    }


def test_the_files_of_runs_and_adapters_are_named_in_one_place():
    own = {getattr(names, name) for name in names.__all__} - {
        names.ADAPTER,
        names.CHECKPOINTS,
        names.LORA,
        names.CONFIG,
        names.LOCK,
    }
    for file in files():
        spelled = {name for name in own for text in strings_of(file) if name in text}
        assert not spelled or file.relative_to(SOURCE).parts[0] in ("saved", "ranks"), (file, spelled)


def test_a_rank_is_worked_out_in_two_places():
    formula = re.compile(r"\b(svdvals|svd|eigvalsh)\b|matrix_norm\(.*ord=2")
    for file in files():
        room = file.relative_to(SOURCE).parts[0]
        found = [line for line in file.read_text(encoding="utf-8").splitlines() if formula.search(line)]
        assert not found or room in ("method", "ranks") or file.name == "factor.py", (file, found)
