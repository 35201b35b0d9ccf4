"""Runs PEFT's own test suite, of the PEFT that is installed, with LR-LoRA: python -m tests.conformance.run

The suite comes from PEFT's source distribution and is never committed. `--compare` runs the same cases with LoRA as
well, and writes which of the tests that LoRA passes LR-LoRA passes too. `--quick` is the subset that every check runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import peft

ROOT = Path(__file__).parents[2]
WORK = ROOT / ".conformance"
FILES = (
    "test_custom_models", "test_decoder_models", "test_encoder_decoder_models", "test_feature_extraction_models",
    "test_seq_classifier", "test_token_classification_qa", "test_config", "test_quantization", "test_target_parameters",
)  # fmt: skip
QUICK = ("test_token_classification_qa", "test_config", "test_seq_classifier")
PACKAGE = "peft_suite"


def prepare() -> Path:
    """The suite and the stand-in models for the installed PEFT; made once per version of it."""
    folder = WORK / peft.__version__
    if (folder / "ready").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as downloads:
        wanted = [f"peft=={peft.__version__}", "--no-deps", "--no-binary", "peft", "--no-build-isolation"]
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "-d", downloads, *wanted], check=True)
        (archive,) = Path(downloads).glob("peft-*.tar.gz")
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                parts = Path(member.name).parts
                if len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py"):
                    content = tar.extractfile(member)
                    assert content is not None
                    (folder / PACKAGE).mkdir(exist_ok=True)
                    (folder / PACKAGE / parts[2]).write_bytes(content.read())
    (folder / PACKAGE / "__init__.py").touch()
    subprocess.run([sys.executable, "-m", "tests.conformance.stand_ins", str(folder)], check=True, cwd=ROOT)
    (folder / "ready").touch()
    return folder


def run(method: str, files: tuple[str, ...], extra: list[str]) -> tuple[int, dict[str, str]]:
    """Exit status of pytest, and the outcome of every test by its name."""
    folder = prepare()
    report = folder / f"{method}.xml"
    environment = {
        **os.environ,
        "CONFORMANCE_METHOD": method,
        "CONFORMANCE_PACKAGE": PACKAGE,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
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
    command = [
        sys.executable,
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
    ended = subprocess.run(command, cwd=folder, env=environment, check=False)
    return ended.returncode, outcomes(report, method)


def outcomes(report: Path, method: str) -> dict[str, str]:
    """passed, failed or skipped, by test; the method's own name is taken out of the test's."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        for own in ("LRLoraConfig", "LoraConfig", "lrlora", "lora"):
            name = name.replace(own, "METHOD")
        kinds = [child.tag for child in case]
        found[name] = "failed" if {"failure", "error"} & set(kinds) else "skipped" if "skipped" in kinds else "passed"
    return found


def main() -> int:
    """Exit status: 0 where every test passed or is a known deviation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the files that every check runs")
    parser.add_argument("--compare", action="store_true", help="run the same cases with LoRA, and compare")
    arguments, extra = parser.parse_known_args()
    files = QUICK if arguments.quick else FILES
    status, ours = run("lrlora", files, extra)
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
