"""How mkdocstrings reads our docstrings: "Example:" holds code, and the "Args:" of a NamedTuple are its fields."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from griffe import Class, Extension

EXAMPLE = re.compile(r"^Example:\n((?:(?:[ ]{4}.*)?(?:\n|$))+)", flags=re.MULTILINE)


class Docstrings(Extension):
    """Rewrites a docstring before it is parsed; the files stay as they are."""

    def on_object(self, *, obj: Any, **kwargs: Any) -> None:
        """Rewrite the docstring of a module, a class or a function."""
        if obj.docstring is None:
            return
        value = EXAMPLE.sub(_examples, obj.docstring.value)
        if isinstance(obj, Class) and any(str(base) == "NamedTuple" for base in obj.bases):
            value = re.sub(r"^Args:$", "Attributes:", value, flags=re.MULTILINE)
        obj.docstring.value = value


def _examples(found: re.Match[str]) -> str:
    code = textwrap.dedent(found[1]).strip("\n")
    if not code.startswith(">>>"):
        code = f"```python\n{code}\n```"
    return f"Examples:\n{textwrap.indent(code, '    ')}\n\n"
