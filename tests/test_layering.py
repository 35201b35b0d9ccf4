"""Each room of the house imports only the rooms above it, and PEFT comes in by one door."""

import ast
from pathlib import Path

import pytest

import lrlora

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
