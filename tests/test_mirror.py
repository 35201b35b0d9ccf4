"""A file of these rooms has a test file of its name, or CONTRIBUTING.md says where its tests are."""

import re
from pathlib import Path

import pytest

import lrlora

SOURCE, ROOT = Path(lrlora.__path__[0]), Path(__file__).parents[1]
ROOMS = ["ops", "tuner"]


def without_test(room: str) -> set[str]:
    """Source files that have no test file of their name."""
    sources = [file.name for file in (SOURCE / room).glob("*.py") if file.name != "__init__.py"]
    return {f"{room}/{name}" for name in sources if not (ROOT / "tests" / room / f"test_{name}").exists()}


def listed_elsewhere() -> dict[str, str]:
    """By source file, the test file that CONTRIBUTING.md names in the list for it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    part = text.partition("## Where the tests of a file are")[2].partition("\n## ")[0]
    return dict(re.findall(r"^- `(\w+/\w+\.py)`: `(tests/[\w/]+\.py)`", part, flags=re.MULTILINE))


@pytest.mark.parametrize("room", ROOMS)
def test_every_file_has_a_test_file_or_a_reason(room):
    listed = {source for source in listed_elsewhere() if source.startswith(f"{room}/")}
    assert listed == without_test(room)


def test_the_test_files_that_are_named_exist():
    for source, test in listed_elsewhere().items():
        assert (ROOT / test).is_file(), (source, test)
