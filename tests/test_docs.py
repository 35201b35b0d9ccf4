"""What the documentation promises is run: the README's code and tree, the examples in docstrings, the command line."""

import contextlib
import doctest
import importlib
import io
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lrlora
import peft_study

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_the_readme_s_code_prints_what_it_says(embedded_encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    codes = [code for language, code in BLOCKS if language == "python"]
    promised = BLOCKS[[language for language, _ in BLOCKS].index("python") + 1][1]
    names: dict = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(codes[0], names)
    assert printed.getvalue() == promised
    for code in codes[1:]:
        exec(code, names)
    names["trainer"].create_optimizer()
    assert {group["lr"] for group in names["trainer"].optimizer.param_groups} == {2e-3}


def test_the_readme_comes_to_the_point():
    lines = README.splitlines()
    assert "pip install" in "\n".join(lines[:15])
    assert lines[:32].count("```python") == 1
    code = next(code for language, code in BLOCKS if language == "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 20


def test_the_speeds_in_the_documentation_are_those_that_were_measured():
    from benchmarks import report

    assert report.sentence() in " ".join(README.split()), report.sentence()
    assert (ROOT / "docs" / "performance.md").read_text(encoding="utf-8") == report.page()


def test_the_readme_s_commands_have_the_flags_that_they_use(capsys):
    used = set(re.findall(r"^lrlora train (.*)$", README, flags=re.MULTILINE))
    assert used
    flags = {flag for line in used for flag in re.findall(r"--\w+", line)}
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert {flag for flag in flags if f"{flag} " not in page} == set()


def test_the_readme_s_tree_is_the_tree():
    tree = next(code for _, code in BLOCKS if "src/lrlora/" in code and "├" not in code)
    base = ROOT
    found = set()
    for line in tree.splitlines():
        name = line.strip().split("  ")[0]
        if not line.startswith(" "):
            base = ROOT / name if name == "src/lrlora/" else ROOT
        path = base / name if line.startswith(" ") else ROOT / name
        assert path.exists(), line
        found.add(path)
    package = ROOT / "src" / "lrlora"
    rooms = {p for p in package.iterdir() if (p / "__init__.py").exists()}
    assert rooms <= found, {p.name for p in rooms - found}


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse words its help differently in every Python")
def test_the_page_of_the_command_line_is_up_to_date(tmp_path):
    # in a process of its own: the width of the help is read once, from the environment
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'docs')!r}); import make_cli; print(make_cli.page(), end='')"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=os.environ)
    assert made.returncode == 0, made.stderr
    assert made.stdout == (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), "run python docs/make_cli.py"


def modules() -> list[str]:
    packages = ((lrlora.__path__, "lrlora."), (peft_study.__path__, "peft_study."))
    found = [module.name for package in packages for module in pkgutil.walk_packages(*package)]
    return sorted(name for name in found if not name.endswith("__main__"))


@pytest.mark.parametrize("name", modules())
def test_the_examples_in_docstrings(name):
    try:
        module = importlib.import_module(name)
    except lrlora.InputError as error:
        assert name.startswith("lrlora.integrations."), name
        pytest.skip(str(error))
    failed, _ = doctest.testmod(module)
    assert failed == 0


PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "studies/README.md")] + [
    *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("README.md"), *(ROOT / "tests").rglob("README.md"),
]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_in_the_documentation_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), (page, target)


def test_the_files_that_a_contributor_is_sent_to_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:src|tests|docs|benchmarks|examples)/[\w./]*)`", text))
    assert len(paths) > 20
    assert {path for path in paths if not (ROOT / path).exists()} == set()
    # `name.py` and `room/name.py` are files of the package
    short = set(re.findall(r"`((?!tests/|docs/|benchmarks/)(?:[a-z_]+/)?[a-z_]+\.py)`", text))
    there = {file.as_posix() for folder in ("src", "docs") for file in (ROOT / folder).rglob("*.py")}
    assert len(short) > 5
    assert {name for name in short if not any(file.endswith(f"/{name}") for file in there)} == set()
    made = set(re.findall(r"(?:`|^)make ([a-z]+)", text, flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "lint" in made and {name for name in made if f"\n{name}:" not in makefile} == set()
