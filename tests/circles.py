"""Circles among the imports of the packages in src, at any depth of the code: python -m tests.circles"""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"


def modules(source: Path = SOURCE) -> dict[str, Path]:
    """The modules of all packages by name; a package is its __init__."""
    found = {}
    for file in sorted(source.rglob("*.py")):
        parts = file.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def graph(source: Path = SOURCE) -> dict[str, set[str]]:
    """What every module imports of the others, for type checkers only and inside of functions as well.

    That an import of a.b runs a/__init__ first is left out: a package and its own parts always form such a circle.
    """
    known = modules(source)

    def target(name: str) -> str | None:
        # of `from a import b` b is a module, or a name in a
        return name if name in known else name.rpartition(".")[0] if name.rpartition(".")[0] in known else None

    edges: dict[str, set[str]] = {}
    for module, file in known.items():
        named = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file} imports relatively"
                named |= {f"{node.module}.{alias.name}" for alias in node.names}
        edges[module] = {hit for hit in map(target, named) if hit is not None and hit != module}
    return edges


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules each of which reaches all others of its group (Tarjan's strongly connected components)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        stack.append(module)
        for other in sorted(edges[module]):
            if other not in number:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], number[other])
        if low[module] == number[module]:
            group = set(stack[stack.index(module) :])
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(group)

    for module in sorted(edges):
        if module not in number:
            visit(module)
    return found


if __name__ == "__main__":
    for group in circles(graph()):
        print(" <-> ".join(sorted(group)))
