"""The code of a model card, run as a reader would run it: in the folder, in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from lrlora.saved import load_adapter
from tests.export.cases import NO_LRLORA

TEXTS = ["a good day number 3", "bad"]
"""Of two lengths: what is padded must not count."""
SAVES = """
import torch
from safetensors.torch import save_file
with torch.no_grad():
    save_file({"logits": model(**tokenizer(%s, padding=True, return_tensors="pt")).logits.contiguous()}, r"%s")
"""
"""What is added to the code: it leaves `model` and `tokenizer`."""


def code_of(folder: Path) -> str:
    """The one block of Python of a card."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    return code


def logits_by_card(folder: Path, scratch: Path, has_lrlora: bool) -> torch.Tensor:
    """What the model gives for TEXTS that the code of the card loads."""
    scratch.mkdir()
    environment = dict(os.environ)
    if not has_lrlora:
        (scratch / "sitecustomize.py").write_text(NO_LRLORA)
        environment["PYTHONPATH"] = str(scratch)
    file = scratch / "logits.safetensors"
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code_of(folder) + SAVES % (TEXTS, file)],
        capture_output=True, text=True, timeout=300, cwd=folder, env=environment,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    return load_file(file)["logits"]


def logits_by_lrlora(folder: Path) -> torch.Tensor:
    """The same of an adapter folder, as lrlora loads it."""
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        return load_adapter(str(folder))(**tokens).logits
