"""Docstrings from our style into PEFT's: types beside the names of arguments, and examples as fenced code."""

from __future__ import annotations

import ast
import re
import textwrap

WIDTH = 119
_SECTION = re.compile(r"^(Args|Returns|Raises|Example|Attributes):$")


def in_peft_style(text: str) -> str:
    """A module with every docstring of its functions and classes rewritten."""
    lines = text.splitlines()
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    for node in sorted(nodes, key=lambda n: -n.lineno):
        first = node.body[0]
        docstring = ast.get_docstring(node)
        if docstring is None or not isinstance(first, ast.Expr):
            continue
        indent = " " * first.col_offset
        lines[first.lineno - 1 : first.end_lineno] = _written(_rewritten(docstring, node, indent), indent)
    return "\n".join(lines) + "\n"


def written(docstring: str) -> str:
    """The docstring of a module, as it stands in the file."""
    return "\n".join(_written(_fitted(docstring.splitlines(), WIDTH), ""))


def _written(said: list[str], indent: str) -> list[str]:
    said = [line.replace("\\", "\\\\") for line in said]
    if len(said) == 1 and len(indent) + len(said[0]) + 6 <= WIDTH:
        return [f'{indent}"""{said[0]}"""']
    return [f'{indent}"""', *((indent + line).rstrip() for line in said), f'{indent}"""']


def _rewritten(docstring: str, node: ast.FunctionDef | ast.ClassDef, indent: str) -> list[str]:
    types, returned = _types_of(node)
    section, held, found = "", list[str](), list[str]()

    def close() -> None:
        while held and not held[-1]:
            held.pop()
        if section in ("", "Raises"):
            found.extend(_fitted(held, WIDTH - len(indent)))
        elif section in ("Args", "Attributes"):
            found.extend(_arguments(held, types, WIDTH - len(indent)))
        elif section == "Returns":
            what = f"`{returned}`: " if returned else ""
            found.extend(_filled(f"{what}{' '.join(line.strip() for line in held)}", 4, WIDTH - len(indent)))
        else:
            found.extend(["", "    ```py", *held, "    ```"])
        held.clear()

    # where a release was seen to have what is used is our own bookkeeping
    docstring = re.sub(r"\n\nSeen in [^\n]*(\n[^\n]+)*", "", docstring)
    for line in docstring.splitlines():
        began = _SECTION.match(line)
        if began:
            close()
            found += ["", line]
            section = began[1]
        elif section and line and not line.startswith(" "):
            close()
            section = ""
            held += ["", line]
        else:
            held.append(line)
    close()
    return found


def _arguments(lines: list[str], types: dict[str, str], width: int) -> list[str]:
    entries: list[tuple[str, list[str]]] = []
    for line in lines:
        began = re.match(r"^    ([\w, ]+): (.*)$", line)
        if began:
            entries.append((began[1], [began[2]]))
        elif line.strip():
            entries[-1][1].append(line.strip())
    found = []
    for names, said in entries:
        kind = types.get(names.split(", ")[0])
        found.append(f"    {names} (`{kind}`):" if kind else f"    {names}:")
        found += _filled(" ".join(said), 8, width)
    return found


def _fitted(lines: list[str], width: int) -> list[str]:
    """Paragraphs with a line too long for PEFT, filled again."""
    found, paragraph = list[str](), list[str]()
    for line in [*lines, ""]:
        if line:
            paragraph.append(line)
            continue
        indent = len(paragraph[0]) - len(paragraph[0].lstrip()) if paragraph else 0
        too_long = any(len(said) > width for said in paragraph)
        found += _filled(" ".join(said.strip() for said in paragraph), indent, width) if too_long else paragraph
        found.append(line)
        paragraph = []
    return found[:-1]


def _filled(text: str, indent: int, width: int) -> list[str]:
    blank = " " * indent
    return textwrap.wrap(
        text, width, initial_indent=blank, subsequent_indent=blank, break_long_words=False, break_on_hyphens=False
    )


def _types_of(node: ast.FunctionDef | ast.ClassDef) -> tuple[dict[str, str], str]:
    if isinstance(node, ast.ClassDef):
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
        return {ast.unparse(n.target): ast.unparse(n.annotation) for n in fields}, ""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    types = {a.arg: ast.unparse(a.annotation) for a in arguments if a.annotation is not None}
    return types, "" if node.returns is None else ast.unparse(node.returns)
