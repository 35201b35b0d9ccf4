"""The compiled library: made once per machine, whole or not at all, and what happens where it cannot be made."""

import os
import subprocess
import sys
import textwrap
import time

import pytest

SCRIPT = """
import logging, torch, lrlora
from lrlora.ops import choose
logging.basicConfig()
A, B = torch.randn(2, 300, requires_grad=True), torch.randn(200, 2)
for _ in range(2):
    lrlora.adapted_linear(torch.ones(300), None, None, A, B, torch.randn(5), 0.1, 1.0, phi="sinc").sum().backward()
print(choose("auto", A, B)[1])
"""


def start(cache, script=SCRIPT, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache), **environment},
    )


def run(cache, script=SCRIPT, **environment) -> tuple[str, str]:
    process = start(cache, script, **environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    # other libraries write there as well
    return out.strip(), "".join(line for line in err.splitlines() if "lrlora" in line.lower() or "LR-LoRA" in line)


def test_it_is_compiled_once_and_said_so(tmp_path):
    chosen, said = run(tmp_path)
    assert (
        chosen == "native" and said.count("lrlora: compiling the passes of phi for this machine, once, some 2 s") == 1
    )
    (library,) = (tmp_path / "lrlora").iterdir()
    written = library.stat().st_mtime_ns
    assert run(tmp_path) == ("native", "")
    assert [*(tmp_path / "lrlora").iterdir()] == [library] and library.stat().st_mtime_ns == written


def test_prepared_in_another_thread_it_is_compiled_once(tmp_path):
    prepared = "from lrlora.ops import library\nlibrary.prepare()\n"
    chosen, said = run(tmp_path, script=prepared + SCRIPT)
    assert chosen == "native" and said.count("compiling") == 1


def test_processes_that_start_together_all_get_it(tmp_path):
    processes = [start(tmp_path) for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert (process.returncode, out.strip()) == (0, "native"), err
    assert len([*(tmp_path / "lrlora").iterdir()]) == 1


def test_a_broken_file_is_made_again(tmp_path):
    run(tmp_path)
    (library,) = (tmp_path / "lrlora").iterdir()
    whole = library.read_bytes()
    # another file in its place: who has the old one mapped keeps it
    beside = tmp_path / "cut"
    beside.write_bytes(whole[:1000])
    beside.replace(library)
    chosen, said = run(tmp_path)
    assert chosen == "native" and said.count("compiling") == 1
    assert len(library.read_bytes()) == len(whole)


def test_without_a_cache_it_is_made_for_the_process(tmp_path):
    (tmp_path / "lrlora").write_text("a file where the folder should be")
    chosen, said = run(tmp_path)
    assert chosen == "native" and said.count("compiling") == 1


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("/nonexistent/g++", "no C++ compiler found (looked for /nonexistent/g++)"),
        ("/bin/false", "/bin/false failed with exit status 1"),
    ],
)
def test_without_a_compiler_the_plain_passes_run_and_say_why_once(compiler, reason, tmp_path):
    chosen, said = run(tmp_path, CXX=compiler)
    assert chosen.startswith("eager, because ") and reason in chosen
    assert said.count("LR-LoRA runs its plain passes, which are several times slower") == 1
    assert not any(file.suffix == ".so" for file in (tmp_path / "lrlora").glob("*"))


def test_a_compiler_that_is_killed_leaves_nothing(tmp_path):
    slow = tmp_path / "slow"
    slow.write_text(
        textwrap.dedent("""\
        #!/bin/sh
        echo $$ > "$(dirname "$0")/pid"
        exec sleep 100
    """)
    )
    slow.chmod(0o755)
    process = start(tmp_path / "cache", CXX=str(slow))
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(int((tmp_path / "pid").read_text()), 9)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and out.startswith("eager, because "), err
    assert [*(tmp_path / "cache" / "lrlora").iterdir()] == []
    assert run(tmp_path / "cache")[0] == "native"
