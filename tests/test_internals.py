"""Private names of torch, transformers, PEFT and other libraries are behind a function of a gate, or in its list."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import lrlora
import peft_study
from lrlora import internals

SOURCE, STUDY = (Path(package.__path__[0]) for package in (lrlora, peft_study))
GATES = (SOURCE / "internals.py", SOURCE / "tuner" / "internals.py")
"""Files that may use any private name; the second is PEFT's."""
LIBRARIES = ("torch", "transformers", "accelerate", "trl")
DOCUMENTED = {"_replace", "_exit"}
"""Of typing.NamedTuple and of os: the underscore is part of a documented name."""
PUBLIC = re.compile(r"torch(\.nn(\.functional)?|\.utils\.data)?|transformers(\.utils|\.pytorch_utils)?|accelerate|trl")
"""Modules whose names without an underscore are documented."""
_ASK = ("getattr", "hasattr", "setattr", "delattr")
_LISTED = re.compile(r"^    (\S+\.py) +(\w+)", flags=re.MULTILINE)


def is_private(name: str) -> bool:
    return re.fullmatch(r"_[A-Za-z]\w*", name) is not None and not name.startswith("__") and name not in DOCUMENTED


def own_names(tree: ast.AST) -> set[str]:
    """Attributes that a file gives its own classes and objects: methods, fields, what is assigned to self."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    found.add(inner.name)
                elif isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                    found.add(inner.target.id)
                elif isinstance(inner, ast.Assign):
                    found |= {target.id for target in inner.targets if isinstance(target, ast.Name)}
        is_stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if is_stored and isinstance(node.value, ast.Name) and node.value.id == "self":
            found.add(node.attr)
    return found


def private_names(source: str) -> set[str]:
    """Private attributes that a file uses and does not define, and those that it overrides and calls by super()."""
    tree = ast.parse(source)
    own = own_names(tree)
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            is_super = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "super"
            is_class = isinstance(node.value, ast.Name) and node.value.id[:1].isupper()
            if is_super or is_class or node.attr not in own:
                found.add(node.attr)
        elif isinstance(node, ast.Call) and len(node.args) > 1 and ast.unparse(node.func) in _ASK:
            found |= private_texts(node.args[1]) - own
        elif isinstance(node, ast.Call) and node.args and re.fullmatch(r"vars\(.*\)\.\w+", ast.unparse(node.func)):
            found |= private_texts(node.args[0]) - own
        elif isinstance(node, ast.Subscript) and re.match(r"vars\(|.*\.__dict__$", ast.unparse(node.value)):
            found |= private_texts(node.slice) - own
    return found


def private_texts(node: ast.AST) -> set[str]:
    return (
        {node.value}
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and is_private(node.value)
        else set()
    )


def imports_beyond(source: str) -> set[str]:
    """What a file imports of a library that is private, or in a module that is not documented."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for module, name in names:
            if module.split(".")[0] in LIBRARIES and (is_private(name) or not PUBLIC.fullmatch(module)):
                found.add(f"{module}.{name}")
    return found


def files() -> list[Path]:
    return [file for package in (SOURCE, STUDY) for file in sorted(package.rglob("*.py")) if file not in GATES]


def name_of(file: Path) -> str:
    return file.relative_to(SOURCE if file.is_relative_to(SOURCE) else STUDY.parent).as_posix()


def listed() -> set[tuple[str, str]]:
    return set(_LISTED.findall(internals.__doc__ or ""))


def test_every_private_name_is_in_the_list():
    used = {(name_of(file), name) for file in files() for name in private_names(file.read_text(encoding="utf-8"))}
    promised = {(file, name) for file, name in listed() if is_private(name)}
    assert used - promised == set(), "put it behind a function of lrlora/internals.py, or into its list with the reason"
    assert promised - used == set(), "no longer used: take it out of the list"


def test_the_rest_of_the_list_is_used_where_it_says():
    others = [(file, name) for file, name in listed() if not is_private(name)]
    assert len(others) > 5
    for file, name in others:
        assert re.search(rf"\b{name}\b", (SOURCE / file).read_text(encoding="utf-8")), (file, name)


@pytest.mark.parametrize("file", files(), ids=name_of)
def test_what_is_not_documented_is_imported_by_a_gate(file):
    assert imports_beyond(file.read_text(encoding="utf-8")) == set()


def test_every_function_says_where_it_was_seen_and_what_breaks_without_it():
    functions = [f for _, f in inspect.getmembers(internals, inspect.isfunction) if f.__module__ == internals.__name__]
    assert len(functions) > 10
    for function in functions:
        assert re.search(r"Seen in (torch|transformers|trl) \d+\.\d+\.\d+", function.__doc__ or ""), function
        assert "Without it " in (function.__doc__ or ""), function


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("x = layer._tp_plan", {"_tp_plan"}),
        ("class A(T):\n    def f(self):\n        return self._signature_columns", {"_signature_columns"}),
        ("class A(T):\n    def _f(self):\n        super()._f()", {"_f"}),
        (
            "class A:\n    def __init__(self):\n        self._x = 1\n    def f(self, other):\n        return other._x",
            set(),
        ),
        ("if getattr(x, '_is_hf_initialized', False): pass", {"_is_hf_initialized"}),
        ("vars(x).pop('_hf_hook')", {"_hf_hook"}),
        ("vars(x)['_hf_hook'] = 1\nx.__dict__['_y'] = 2", {"_hf_hook", "_y"}),
        ("y = pair._replace(a=1)\nz = x.__dict__", set()),
    ],
)
def test_it_sees_private_names(code, found):
    assert private_names(code) == found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from torch._guards import detect_fake_mode", {"torch._guards.detect_fake_mode"}),
        ("import torch._dynamo", {"torch._dynamo."}),
        ("def f():\n    from transformers import _private", {"transformers._private"}),
        ("from transformers.modeling_utils import x", {"transformers.modeling_utils.x"}),
        ("from accelerate.hooks import add_hook_to_module", {"accelerate.hooks.add_hook_to_module"}),
        ("from transformers import Trainer\nfrom torch.nn.functional import linear\nimport torch", set()),
    ],
)
def test_it_sees_imports_of_what_is_not_documented(code, found):
    assert imports_beyond(code) == found
