"""Which README.md of a folder may be replaced: a model card of ours, or PEFT's template, that nobody has edited.

A card ends with a line that holds the digest of its text: one that was edited is known as such.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import lrlora
from lrlora.saved import names

_SIGNED = re.compile(r"\n<!-- written by lrlora [^ ]+, sha256 ([0-9a-f]{64}) -->\n\Z")
_BLANKS_OF_PEFT = 20
"""The blank template that PEFT writes has more places than that to fill in."""


def signed(text: str) -> str:
    """The text with a last line by which it is known again as it was written."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text}\n<!-- written by lrlora {lrlora.__version__}, sha256 {digest} -->\n"


def may_be_replaced(text: str) -> bool:
    """Whether a README.md is a card of ours that nobody edited, or PEFT's blank template."""
    if found := _SIGNED.search(text):
        return hashlib.sha256(text[: found.start()].encode()).hexdigest() == found.group(1)
    return "# Model Card for Model ID" in text and text.count("[More Information Needed]") > _BLANKS_OF_PEFT


def edited_card(folder: Path) -> list[Path]:
    """The README.md of a folder where it may not be replaced, in a list; else nothing."""
    file = folder.expanduser() / names.CARD
    is_kept = file.is_file() and not may_be_replaced(file.read_text(encoding="utf-8", errors="replace"))
    return [file] if is_kept else []


def write_card(folder: Path, text: str, target: Path, say: Callable[[str], None]) -> None:
    """Write a card into a new folder, unless the folder that it replaces has a README.md of somebody else.

    Args:
        folder: the new folder.
        text: of the card.
        target: the folder whose place it takes.
        say: gets a line where the README.md that was there is kept.
    """
    if kept := edited_card(target):
        shutil.copyfile(kept[0], folder / names.CARD)
        say(f"{kept[0]} is kept as it was: lrlora did not write it, or it was edited since; no model card is written")
    else:
        (folder / names.CARD).write_text(text, encoding="utf-8")
