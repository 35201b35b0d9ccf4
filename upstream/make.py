"""Makes a source tree of PEFT that has LR-LoRA inside: python -m upstream.make [--out build/upstream]

The tree is that of the installed PEFT's source distribution. `tuner.py` makes the tuner of our sources, `rows.py` adds
rows to PEFT's tests, `patches.py` edits PEFT's own files, and `files/` is laid over them. docs/upstream.md says how the
tuner differs from lrlora.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import peft

from tests.conformance.plugin import LISTS
from upstream.parts import edited
from upstream.patches import EXPERIMENT, PATCHES
from upstream.rows import with_rows
from upstream.sdist import ROOT, ruff_of, unpacked
from upstream.tuner import HEADER, files

MARK = ".made_by_lrlora"
"""A file in every tree that we made: another folder is not replaced."""


def make(out: Path) -> list[str]:
    """Write the tree, in the place of an older one.

    Args:
        out: its folder.

    Returns:
        The names of the files that PEFT's own tree does not have, or has otherwise.

    Raises:
        ValueError: `out` is a folder that this did not make; an edit does not fit our sources or this PEFT; ruff finds
            fault with the tree, or it cannot be imported.
        RuntimeError: pip could not download PEFT's source, or its release of ruff.
    """
    if out.exists() and not (out / MARK).exists():
        raise ValueError(f"{out} exists and was not made by upstream.make; pass another folder to --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as beside:
        tree = Path(beside) / "tree"
        shutil.copytree(unpacked(), tree)
        (tree / MARK).write_text(f"peft {peft.__version__}\n", encoding="utf-8")
        ours, theirs = _lay(tree)
        _tidy(tree, ours, theirs)
        _experiment(tree)
        if out.exists():
            shutil.rmtree(out)
        tree.rename(out)
    return [*ours, *theirs, *EXPERIMENT]


def _lay(tree: Path) -> tuple[list[str], list[str]]:
    """Files that are new, and files of PEFT that have changed."""
    ours = {f"src/peft/tuners/lrlora/{name}": text for name, text in files(ROOT / "src" / "lrlora").items()}
    overlay = ROOT / "upstream" / "files"
    for file in sorted(path for path in overlay.rglob("*") if path.is_file()):
        text = file.read_text(encoding="utf-8")
        ours[file.relative_to(overlay).as_posix()] = f"{HEADER}\n{text}" if file.suffix == ".py" else text
    theirs = {name: edited((tree / name).read_text(encoding="utf-8"), edits, name) for name, edits in PATCHES.items()}
    for name in LISTS:
        file = f"tests/{name}.py"
        theirs[file] = with_rows(name, (tree / file).read_text(encoding="utf-8"))
    for name, text in {**ours, **theirs}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text, encoding="utf-8")
    return list(ours), list(theirs)


def _tidy(tree: Path, ours: list[str], theirs: list[str]) -> None:
    """Sort imports and format as PEFT's settings say; fail on what they find else."""
    python = [name for name in ours if name.endswith(".py")]
    _ruff(tree, "check", "--fix", "--unsafe-fixes", "--quiet", *python)
    _ruff(tree, "check", "--fix", "--quiet", *theirs)
    _ruff(tree, "format", "--quiet", *python, *theirs)
    _ruff(tree, "check", "--quiet", *python, *theirs)


def _ruff(tree: Path, *arguments: str) -> None:
    command = [str(ruff_of(tree)), *arguments, "--no-cache"]
    ended = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ValueError(f"ruff finds fault with the tree:\n{ended.stdout}{ended.stderr}")


def _experiment(tree: Path) -> None:
    """Write the experiments for PEFT's method_comparison, with the configurations as the tree itself saves them."""
    code = (
        "import json, sys, peft\n"
        "for folder, fields in json.loads(sys.argv[1]).items(): peft.LRLoraConfig(**fields).save_pretrained(folder)"
    )
    wanted = {str((tree / name).parent): fields for name, fields in EXPERIMENT.items()}
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-W", "ignore", "-c", code, json.dumps(wanted)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ValueError(f"the tree cannot be imported:\n{ended.stderr}")


def main() -> int:
    """Exit status: 0 where the tree was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "upstream", help="folder of the tree")
    arguments = parser.parse_args()
    for name in make(arguments.out):
        print(arguments.out / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
