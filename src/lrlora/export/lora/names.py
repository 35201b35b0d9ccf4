"""Names of modules in a LoraConfig that match these modules and no others."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lrlora.tuner.internals import get_pattern_key


def target_modules(names: Sequence[str], modules: Sequence[str]) -> list[str] | str:
    """`target_modules` that choose exactly these modules.

    Args:
        names: the modules to choose.
        modules: all modules of the model, among them those.

    Returns:
        The last parts of the names where these are enough, the form that servers know; else the full names; else a
        regular expression.

    Example:
        >>> target_modules(["a.0.query", "a.1.query"], ["a", "a.0", "a.0.query", "a.1", "a.1.query"])
        ['query']
        >>> target_modules(["a.0.query"], ["a", "a.0", "a.0.query", "a.1", "a.1.query"])
        ['a.0.query']
    """
    for chosen in (sorted({name.split(".")[-1] for name in names}), sorted(names)):
        if {m for m in modules if any(m == c or m.endswith(f".{c}") for c in chosen)} == set(names):
            return chosen
    return "|".join(re.escape(name) for name in sorted(names))


def pattern_keys(names: Sequence[str]) -> list[str]:
    """Keys for `rank_pattern` and `alpha_pattern` of which each matches only its own module.

    They are the full names. PEFT reads keys as regular expressions for the end of a name: where one full name would
    match another's module too, all are anchored and escaped.

    Example:
        >>> pattern_keys(["a.0.query", "a.1.query"])
        ['a.0.query', 'a.1.query']
        >>> pattern_keys(["query", "a.query"])
        ['^query', '^a\\\\.query']
    """
    is_plain_enough = all(get_pattern_key(names, name) == name for name in names) and all(
        get_pattern_key(names[::-1], name) == name for name in names
    )
    if is_plain_enough:
        return list(names)
    return [f"^{re.escape(name)}" for name in names]
