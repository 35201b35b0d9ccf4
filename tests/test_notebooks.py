"""Every notebook is executed anew, and prints what the committed one shows, which names no machine and no time."""

import importlib.util
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
FILES = sorted(FOLDER.glob("*.ipynb"))
NEEDED = ("nbclient", "nbformat", "ipykernel", "datasets", "matplotlib", "scipy")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
EXECUTED_WITH = "AVX2"
"""What torch used of the processor when the committed notebooks were executed."""
every_notebook = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def text_of(outputs: list[dict]) -> str:
    """What a cell printed, and its results as text."""
    found = (output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)
    return "".join("".join(part) for part in found)


def figures_of(outputs: list[dict]) -> list[str]:
    return [kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")]


def shape_of(text: str) -> str:
    """The text with ``#`` for each number and one space for each run of them: how wide a number is fills its column."""
    return re.sub(" +", " ", NUMBER.sub("#", text))


def numbers_in(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in NUMBER.findall(text)]


@every_notebook
@pytest.mark.timeout(1200)
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_it_runs_and_shows_what_the_committed_one_shows(file, tmp_path, request):
    request.getfixturevalue("embedded_decoder" if file.stem == "to_server" else "embedded_encoder")
    script = [sys.executable, str(FOLDER / "execute.py"), file.stem, "--out", str(tmp_path)]
    # it ends with an error where a cell fails, writes on stderr, or leaves a file behind
    ended = subprocess.run(script, capture_output=True, text=True, timeout=1100)
    assert ended.returncode == 0, ended.stderr
    committed, executed = (code_cells(read(folder / file.name)) for folder in (FOLDER, tmp_path))
    assert [cell["source"] for cell in executed] == [cell["source"] for cell in committed]
    for old, new in zip(committed, executed, strict=True):
        assert figures_of(new["outputs"]) == figures_of(old["outputs"])
        shown, printed = text_of(old["outputs"]), text_of(new["outputs"])
        assert shape_of(printed) == shape_of(shown), (shown, printed)
        if torch.backends.cpu.get_cpu_capability() != EXECUTED_WITH:
            # such a processor rounds otherwise, and after some steps of training that is seen
            continue
        assert numbers_in(printed) == pytest.approx(numbers_in(shown), rel=0.15, abs=0.06), (shown, printed)


@every_notebook
def test_the_committed_one_was_executed_from_the_first_cell_to_the_last(file):
    cells = code_cells(read(file))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert {output.get("name") for cell in cells for output in cell["outputs"]} <= {"stdout", None}
    assert sum(bool(text_of(cell["outputs"])) for cell in cells) >= 4


@every_notebook
def test_what_it_shows_names_no_machine_and_no_time(file):
    notebook = read(file)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in code_cells(notebook):
        text = text_of(cell["outputs"])
        assert set(cell["metadata"]) <= {"tags"}
        assert not re.search(r"(?<![\w.~])/\w+/|[A-Z]:\\|~/", text), text
        assert socket.gethostname() not in text
        assert not re.search(r"\d\s?(?:s|ms|it/s|seconds|minutes)\b|[Ww]arning|runtime", text), text


@every_notebook
def test_it_is_small_and_says_first_what_a_reader_will_know(file):
    assert file.stat().st_size < 150_000
    cells = read(file)["cells"]
    first = "".join(cells[0]["source"])
    assert cells[0]["cell_type"] == "markdown" and first.startswith("# ")
    assert "At the end of this notebook you" in first.split("\n\n")[1]
    for cell in code_cells({"cells": cells}):
        assert len(cell["source"]) <= 45, "".join(cell["source"])
    assert sum(len(figures_of(cell.get("outputs", []))) for cell in cells) <= 2


@every_notebook
def test_every_number_of_the_prose_is_in_a_cell_above_it(file):
    above = ""
    for cell in read(file)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            above += source + text_of(cell["outputs"])
            continue
        for number in re.findall(r"(?<![\w.:/-])\d[\d,]*\.\d+", re.sub(r"```.*?```", "", source, flags=re.DOTALL)):
            assert number in above, f"{number} is in the prose and in no cell above it"


@every_notebook
def test_its_links_lead_somewhere_and_the_documentation_lists_it(file):
    for cell in read(file)["cells"]:
        if cell["cell_type"] == "markdown":
            for target in re.findall(r"\]\(([^)#]+)\)", "".join(cell["source"])):
                assert target.startswith("http") or (FOLDER / target).exists(), target
    for page in ("README.md", "docs/notebooks.md"):
        assert f"notebooks/{file.name})" in (ROOT / page).read_text(encoding="utf-8"), page


def test_there_are_notebooks_and_make_executes_them():
    assert {file.stem for file in FILES} >= {"first_adapter", "which_rank", "too_small", "to_server"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\nnotebooks: install\n\t$(BIN)/python notebooks/execute.py\n" in makefile
