"""Pieces of our source files, and how several of them become one file of PEFT's tuner.

Every text edit names what it expects and fails unless it is there exactly once: a change of our sources that an edit
does not know stops the build instead of giving a wrong tree.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from upstream.docstrings import in_peft_style, written


@dataclass(frozen=True)
class Part:
    """One of our files, or some of its definitions.

    Args:
        file: below src/lrlora.
        take: names of the definitions that are taken; empty: all.
        leave: names of definitions, or "Class.method", that are left out.
        edits: texts and what replaces them, each found exactly once.
        renames: texts and what replaces them wherever they are, at least once.
    """

    file: str
    take: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()
    edits: tuple[tuple[str, str], ...] = ()
    renames: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Target:
    """A file of the tuner in PEFT.

    Args:
        file: its name.
        parts: that it is made of, in their order.
        said_in: the part whose docstring it has; empty: none.
    """

    file: str
    parts: tuple[Part, ...]
    said_in: str = ""


@dataclass
class Piece:
    """What a part gives: the docstring and imports of its file, the code taken from it, and the names it defines."""

    file: str
    docstring: str
    imports: list[ast.Import | ast.ImportFrom]
    code: str
    names: list[str]


def edited(text: str, edits: Iterable[tuple[str, str]], what: str) -> str:
    """The text after edits that each match exactly once.

    Raises:
        ValueError: an edit that matches not at all or several times, quoted.
    """
    for old, new in edits:
        if text.count(old) != 1:
            raise ValueError(f"{what}: needed exactly once, found {text.count(old)} times:\n{old}")
        text = text.replace(old, new)
    return text


def read(part: Part, source: Path) -> Piece:
    """A part of our sources, edited, its docstrings in PEFT's style."""
    text = _with_plain_fields(_without_our_tools((source / part.file).read_text(encoding="utf-8")))
    for old, new in part.renames:
        if old not in text:
            raise ValueError(f"{part.file}: needed at least once, found nowhere:\n{old}")
        text = text.replace(old, new)
    text = in_peft_style(edited(text, part.edits, part.file))
    lines = text.splitlines()
    imports: list[ast.Import | ast.ImportFrom] = []
    blocks: list[tuple[list[str], str]] = []
    found: set[str] = set()
    end = 0
    tree = ast.parse(text)
    for node in tree.body:
        begin, end = end, node.end_lineno or node.lineno
        # comments above belong to what follows
        block = "\n".join(lines[begin:end]).strip("\n")
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(node)
        elif isinstance(node, ast.Expr):
            # the module's docstring, or what is said of the value above
            if blocks and blocks[-1][1]:
                blocks[-1] = (blocks[-1][0], f"{blocks[-1][1]}\n{block}")
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            names = _names_of(node)
            found |= set(names)
            is_taken = (not part.take or set(names) & set(part.take)) and not set(names) & set(part.leave)
            if isinstance(node, ast.ClassDef) and is_taken:
                block = _without_methods(node, lines, begin, part.leave, found)
            blocks.append((names, block if is_taken else ""))
    unknown = (set(part.take) | set(part.leave)) - found
    if unknown:
        raise ValueError(f"{part.file} has no {', '.join(sorted(unknown))}: bring upstream/tuner.py up to date")
    taken = [(names, block) for names, block in blocks if block]
    # a formatter puts the two blank lines around functions and classes
    docstring = ast.get_docstring(tree) or ""
    code, names = "\n".join(block for _, block in taken), [name for names, _ in taken for name in names]
    return Piece(part.file, docstring, imports, code, names)


def assembled(target: Target, pieces: list[Piece], imports: list[str], header: str) -> str:
    """The text of a file of the tuner, whose imports are still to be sorted.

    Raises:
        ValueError: two parts that define the same name.
    """
    twice = [name for name, number in Counter(name for piece in pieces for name in piece.names).items() if number > 1]
    if twice:
        raise ValueError(f"{target.file}: defined by two of its parts: {', '.join(twice)}")
    said = next((piece.docstring for piece in pieces if piece.file == target.said_in), "")
    assert bool(said) == bool(target.said_in), f"{target.said_in} has no docstring, or is no part of {target.file}"
    docstring = f"{written(said)}\n\n" if said else ""
    top = "\n".join(["from __future__ import annotations", *dict.fromkeys(imports)])
    return f"{header}\n{docstring}{top}\n\n\n" + "\n".join(piece.code for piece in pieces) + "\n"


def _names_of(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        names = []
        for target in node.targets:
            names += [ast.unparse(t) for t in (target.elts if isinstance(target, ast.Tuple) else [target])]
        return names
    if isinstance(node, ast.AnnAssign):
        return [ast.unparse(node.target)]
    raise ValueError(f"line {node.lineno}: a {type(node).__name__} at the top of a file has no name to take it by")


def _without_methods(node: ast.ClassDef, lines: list[str], begin: int, leave: tuple[str, ...], found: set[str]) -> str:
    kept = lines[begin : node.end_lineno]
    for method in reversed(node.body):
        if not isinstance(method, ast.FunctionDef):
            continue
        found.add(f"{node.name}.{method.name}")
        if f"{node.name}.{method.name}" in leave:
            first = min([method.lineno, *(d.lineno for d in method.decorator_list)])
            # with the blank line that follows
            del kept[first - 1 - begin : (method.end_lineno or method.lineno) - begin + 1]
    return "\n".join(kept).strip("\n")


def _without_our_tools(text: str) -> str:
    """Without what pyright and jaxtyping read; InputError is a ValueError."""
    text = re.sub(r"\n# pyright: .*", "", text)
    text = re.sub(r"  # pyright: .*", "", text)
    text = re.sub(r'Float\[Tensor, "[^"]*"\]', "Tensor", text).replace("Tensor | Tensor", "Tensor")
    return re.sub(r"\bInputError\b", "ValueError", text)


def _with_plain_fields(text: str) -> str:
    """`_field(default, help)` of a config as the call of dataclasses.field that it stands for."""
    calls = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call) and ast.unparse(n.func) == "_field"]
    written = [[ast.get_source_segment(text, node) for node in (call, *call.args)] for call in calls]
    for whole, default, said in written:
        assert whole is not None
        text = text.replace(whole, f'field(default={default}, metadata={{"help": {said}}})', 1)
    return text
