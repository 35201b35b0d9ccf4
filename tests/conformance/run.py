"""Runs PEFT's own test suite, of the PEFT that is installed, with LR-LoRA: python -m tests.conformance.run

The suite comes from PEFT's source distribution and is never committed. `--compare` runs the same cases with LoRA as
well, and writes which of the tests that LoRA passes LR-LoRA passes too. `--quick` is the subset that every check runs.
`--tree FOLDER` runs the suite of a PEFT that has LR-LoRA inside, as `upstream/` makes it, and compares both outcomes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import peft

from upstream.sdist import unpacked

ROOT = Path(__file__).parents[2]
WORK = ROOT / ".conformance"
FILES = (
    "test_custom_models", "test_decoder_models", "test_encoder_decoder_models", "test_feature_extraction_models",
    "test_seq_classifier", "test_token_classification_qa", "test_config", "test_quantization", "test_target_parameters",
)  # fmt: skip
QUICK = ("test_token_classification_qa", "test_config", "test_seq_classifier")
PACKAGE = "peft_suite"
OWN = "test_lrlora"
"""The file that a tree with LR-LoRA inside has for LR-LoRA alone."""


def prepare() -> Path:
    """The suite and the stand-in models for the installed PEFT; made once per version of it."""
    folder = WORK / peft.__version__
    if (folder / "ready").exists():
        return folder
    take_suite(unpacked(), folder)
    subprocess.run([sys.executable, "-m", "tests.conformance.stand_ins", str(folder)], check=True, cwd=ROOT)
    (folder / "ready").touch()
    return folder


def take_suite(tree: Path, folder: Path) -> None:
    """Copy the tests of a source tree of PEFT into a package of another name than that of ours."""
    (folder / PACKAGE).mkdir(parents=True, exist_ok=True)
    for file in (tree / "tests").glob("*.py"):
        shutil.copy(file, folder / PACKAGE)
    (folder / PACKAGE / "__init__.py").touch()


def run(method: str, files: tuple[str, ...], extra: list[str], tree: Path | None = None) -> tuple[int, dict[str, str]]:
    """Exit status of pytest, and the outcome of every test by its name.

    Args:
        method: whose cases: "lrlora" or "lora" of the installed PEFT, "upstream" of a tree that has LR-LoRA inside.
        files: of the suite.
        extra: arguments of pytest.
        tree: that source tree, for "upstream".
    """
    folder = models = prepare()
    paths = [ROOT]
    if tree is not None:
        folder = WORK / "upstream"
        take_suite(tree, folder)
        paths = [tree.resolve() / "src", ROOT]
    report = folder / f"{method}.xml"
    environment = {
        **os.environ,
        "CONFORMANCE_METHOD": method,
        "CONFORMANCE_PACKAGE": PACKAGE,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(map(str, [folder, *paths])),
        "TOKENIZERS_PARALLELISM": "false",
    }
    # an empty configuration: peft's own, and ours, would be found otherwise
    options = [
        "-c",
        os.devnull,
        "--rootdir",
        str(folder),
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        "-q",
        "-rs",
    ]
    tests = [str(folder / PACKAGE / f"{name}.py") for name in files]
    # -P: not the suite that lies where the stand-ins are
    command = [
        sys.executable,
        "-P",
        "-W",
        "ignore",
        "-m",
        "pytest",
        "-p",
        "tests.conformance.plugin",
        *options,
        *tests,
        *extra,
    ]
    ended = subprocess.run(command, cwd=models, env=environment, check=False)
    return ended.returncode, outcomes(report)


def outcomes(report: Path) -> dict[str, str]:
    """passed, failed, skipped or deviates (a failure that `deviations` knows), by test.

    The method's own name, and its place in a list, are taken out of the test's; tests that have one name then are
    numbered in their order.
    """
    found, times = {}, Counter[str]()
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        for own in ("LRLoraConfig", "LoraConfig", "LR-LoRA", "LoRA", "lrlora", "lora"):
            name = name.replace(own, "METHOD")
        name = re.sub(r"(kwargs(_\d)?|config)\d+", r"\1", name)
        times[name] += 1
        name = f"{name} ({times[name]})"
        kinds = [child.tag for child in case]
        found[name] = "failed" if {"failure", "error"} & set(kinds) else "skipped" if "skipped" in kinds else "passed"
        if any(child.get("type") == "pytest.xfail" for child in case):
            found[name] = "deviates"
    return found


def main() -> int:
    """Exit status: 0 where every test passed or is a known deviation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the files that every check runs")
    parser.add_argument("--compare", action="store_true", help="run the same cases with LoRA, and compare")
    parser.add_argument("--tree", type=Path, help="a source tree of PEFT that has LR-LoRA inside")
    arguments, extra = parser.parse_known_args()
    files = QUICK if arguments.quick else FILES
    status, ours = run("lrlora", files, extra)
    if arguments.tree is not None:
        of_tree, theirs = run("upstream", (OWN, *files), extra, arguments.tree)
        own = f".{OWN.replace('lrlora', 'METHOD')}."
        both = {name for name in ours.keys() | theirs.keys() if own not in name}
        differing = {name: (ours.get(name), theirs.get(name)) for name in both}
        differing = {name: ends for name, ends in sorted(differing.items()) if ends[0] != ends[1]}
        print(json.dumps({"test": ["out of the tree", "in the tree"], **differing}, indent=1))
        counts = [", ".join(f"{n} {end}" for end, n in Counter(found.values()).items()) for found in (ours, theirs)]
        print(f"out of the tree: {counts[0]}; in the tree: {counts[1]}; {len(differing)} end differently")
        # a tree may do better
        status = status or of_tree or int(any(ends != ("deviates", "passed") for ends in differing.values()))
    if arguments.compare:
        _, lora = run("lora", files, extra)
        # tests that name LoRA's config in their own text, not in the lists that we exchange, are only about LoRA
        passed = [name for name, outcome in lora.items() if outcome == "passed" and name in ours]
        missing = {name: ours[name] for name in passed if ours[name] != "passed"}
        share = 1 - len(missing) / max(len(passed), 1)
        only_lora = sum(outcome == "passed" and name not in ours for name, outcome in lora.items())
        print(json.dumps({"peft": peft.__version__, "about LoRA alone": only_lora, "missing": missing}, indent=1))
        print(f"LR-LoRA passes {len(passed) - len(missing)} of the {len(passed)} tests that LoRA passes: {share:.1%}")
        status = status or int(share < 0.95)
    return status


if __name__ == "__main__":
    sys.exit(main())
