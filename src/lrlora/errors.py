"""The exception for input that cannot work; its message says what would."""

import difflib
from collections.abc import Sequence


class InputError(ValueError):
    """Bad input: says in one line what was got, what was needed and what to do. The command line exits with 2 on it."""


def first_lines(error: BaseException) -> str:
    """The first two lines of a library's error, in one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


def meant(name: str, names: Sequence[str]) -> str | None:
    """The name that a misspelt one means: by its beginning, by its initials, or by its letters; None: none of them."""
    near = [n for n in names if n.startswith(name) or "".join(word[:1] for word in n.split("_")) == name]
    return next(iter(near or difflib.get_close_matches(name, names, n=1)), None)
