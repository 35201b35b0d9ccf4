"""The source tree of the PEFT that is installed, and the release of ruff that it is formatted with, from PyPI."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

import peft

ROOT = Path(__file__).parents[1]
_WORK = ROOT / ".conformance"


def unpacked() -> Path:
    """The folder of the source distribution; downloaded and unpacked once per version, below .conformance/.

    Raises:
        RuntimeError: pip could not download it; the message is pip's.
    """
    folder = _WORK / f"peft-{peft.__version__}"
    if folder.exists():
        return folder
    _WORK.mkdir(exist_ok=True)
    # beside its place, and renamed when it is whole
    with tempfile.TemporaryDirectory(dir=_WORK) as beside:
        wanted = [f"peft=={peft.__version__}", "--no-deps", "--no-binary", "peft", "--no-build-isolation"]
        _pip("download", "-d", beside, *wanted)
        (archive,) = Path(beside).glob("peft-*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(beside, filter="data")
        (Path(beside) / archive.name.removesuffix(".tar.gz")).rename(folder)
    return folder


def ruff_of(tree: Path) -> Path:
    """The program ruff in the one release that PEFT's settings name; installed once, below .conformance/.

    Raises:
        RuntimeError: pip could not install it; the message is pip's.
    """
    settings = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    version = settings["required-version"].removeprefix("==")
    folder = _WORK / f"ruff-{version}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=_WORK) as beside:
            _pip("install", "--target", f"{beside}/ruff", "--no-deps", f"ruff=={version}")
            (Path(beside) / "ruff").rename(folder)
    return folder / "bin" / "ruff"


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", arguments[0], "-q", "--disable-pip-version-check", *arguments[1:]]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command[2:])} failed:\n{ended.stderr}")
