"""Each room imports only the rooms above it, peft_study imports lrlora and not the reverse, PEFT has one door."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lrlora
import peft_study
from lrlora.saved import names
from tests.circles import circles, graph, modules

SOURCE, STUDY = (Path(package.__path__[0]) for package in (lrlora, peft_study))
ROOMS = [
    "errors", "files", "statistics", "method", "ops", "internals", "tuner", "ranks", "data", "saved", "evaluation",
    "training", "generation", "export", "report", "cli", "integrations", "run",
]  # fmt: skip
"""From the top down: a room may import those that stand before it."""
PEFT_ROOMS = ("tuner", "saved", "training", "export", "integrations")
"""Rooms that import peft."""
DOOR = SOURCE / "cli" / "verbs.py"
"""The one file of lrlora that names peft_study, and imports it by name when a verb needs it."""


def imports_of(file: Path) -> set[str]:
    """Modules that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(*packages: Path) -> list[Path]:
    return sorted(file for package in packages or (SOURCE, STUDY) for file in package.rglob("*.py"))


def names_of(file: Path) -> set[str]:
    """Modules that a file imports, and every text in it that names one: an import by name is an import."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return imports_of(file) | {text for text in texts if re.fullmatch(r"[\w.]+", text)}


@pytest.mark.parametrize("file", files(SOURCE), ids=lambda f: str(f.relative_to(SOURCE)))
def test_a_room_imports_only_what_stands_above_it(file):
    room = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    for name in imports_of(file):
        parts = name.split(".")
        if parts[0] == "lrlora" and len(parts) > 1 and parts[1] in ROOMS:
            assert ROOMS.index(parts[1]) <= ROOMS.index(room), f"{room} imports {name}"


def test_what_serves_other_tools_uses_the_adapter_alone_and_is_used_by_nothing():
    inside = {"errors", "tuner", "ranks", "saved", "integrations"}
    for file in files():
        used = {name.split(".")[1] for name in imports_of(file) if name.startswith("lrlora.")} & set(ROOMS)
        if file.parent.name == "integrations":
            assert used <= inside, (file, used)
        else:
            assert "integrations" not in used, file


def test_lrlora_reaches_peft_study_by_one_door():
    naming = {file for file in files(SOURCE) if any(name.split(".")[0] == "peft_study" for name in names_of(file))}
    assert naming == {DOOR}
    assert not any(name.split(".")[0] == "peft_study" for name in imports_of(DOOR))


def test_the_door_is_opened_only_when_a_study_is_asked_for():
    code = "import sys, lrlora.cli; lrlora.cli.main(['report', '--help'])"
    code = f"import atexit, sys; atexit.register(lambda: print('peft_study' in sys.modules)); {code}"
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "False"
    assert "FOLDER ..." in ended.stdout


def test_no_imports_go_round_in_a_circle(tmp_path):
    assert circles(graph()) == []
    assert len([name for name in modules() if name.startswith("peft_study.")]) == len(files(STUDY)) - 1
    # it sees one where there is one, in a function or for type checkers
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "a.py").write_text("from pack.b import x")
    (tmp_path / "pack" / "b.py").write_text("if TYPE_CHECKING:\n    from pack import c")
    (tmp_path / "pack" / "c.py").write_text("def f():\n    import pack.a")
    assert circles(graph(tmp_path)) == [{"pack.a", "pack.b", "pack.c"}]


def test_the_method_imports_torch_alone():
    allowed = {"torch", "lrlora", "math", "typing", "dataclasses", "__future__", "jaxtyping"}
    for file in (SOURCE / "method").glob("*.py"):
        assert {name.split(".")[0] for name in imports_of(file)} <= allowed, file


def test_what_of_peft_is_not_public_is_imported_in_one_file():
    for file in files():
        inner = {name for name in imports_of(file) if name.startswith(("peft.tuners", "peft.utils", "peft.mapping"))}
        assert not inner or file == SOURCE / "tuner" / "internals.py", (file, inner)
    for file in files(SOURCE):
        peft = {name for name in imports_of(file) if name.split(".")[0] == "peft"}
        assert not peft or file.relative_to(SOURCE).parts[0] in PEFT_ROOMS, (file, peft)


def test_no_picture_is_drawn_by_pyplot():
    # which would choose a backend for the figures of the user's notebook
    assert [file for file in files() if "matplotlib.pyplot" in imports_of(file)] == []


def test_files_stay_readable():
    long = {file.relative_to(SOURCE.parent).as_posix(): len(file.read_text().splitlines()) for file in files()}
    assert {name: lines for name, lines in long.items() if lines > 300} == {}


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
        assert not spelled or file.parent.name in ("saved", "ranks"), (file, spelled)


def test_a_rank_is_worked_out_in_two_places():
    formula = re.compile(r"\b(svdvals|svd|eigvalsh)\b|matrix_norm\(.*ord=2")
    for file in files():
        found = [line for line in file.read_text(encoding="utf-8").splitlines() if formula.search(line)]
        assert not found or file.parent.name in ("method", "ranks") or file.name == "factor.py", (file, found)
