"""`python -m lrlora.run`: tools that know nothing of LR-LoRA, run by a process that does."""

import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import lrlora
from tests.conftest import tiny_llama

SCRIPT = """
import os, sys
import peft
print(sys.argv[1:], sys.path[0] == os.path.dirname(os.path.realpath(__file__)), __name__)
print("LRLORA" in peft.PeftType.__members__, sys.modules["__main__"].__file__ == __file__)
"""
LOADER = """
import json, sys
import torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    print(json.dumps(model(torch.tensor([[1, 2, 3]])).logits[0, -1].tolist()))
"""


def run(*words: str, folder: Path, before: tuple[str, ...] = ("-m", "lrlora.run")) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", *before, *words], cwd=folder, capture_output=True, text=True, timeout=300
    )


def test_a_script_sees_its_own_arguments_path_and_name(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "tool.py").write_text(SCRIPT)
    ended = run("sub/tool.py", "--flag", "-m", folder=tmp_path)
    assert ended.stdout.splitlines() == ["['--flag', '-m'] True __main__", "True True"], ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("lrlora.run: ")]
    version = f"lrlora {lrlora.__version__} and peft {peft.__version__}"
    assert line == f"lrlora.run: script sub/tool.py, with {version}"


def test_a_tool_of_peft_loads_what_it_could_not_load(tmp_path):
    model = tiny_llama()
    model.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(base, lrlora.LRLoraConfig(task_type="CAUSAL_LM", init_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    (tmp_path / "tool.py").write_text(LOADER)
    alone = run("adapter", folder=tmp_path, before=("tool.py",))
    assert alone.returncode == 1 and "LRLORA" in alone.stderr
    ended = run("tool.py", "adapter", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    with torch.no_grad():
        expected = adapted.eval()(torch.tensor([[1, 2, 3]])).logits[0, -1]
    assert torch.allclose(torch.tensor(json.loads(ended.stdout)), expected, atol=1e-6)


def test_a_module_and_a_command_run_with_their_exit_status(tmp_path):
    (tmp_path / "quits.py").write_text("import sys; print(sys.argv); sys.exit(7)")
    ended = run("-m", "quits", "a", folder=tmp_path)
    assert (ended.returncode, ended.stdout.strip()) == (7, str([str(tmp_path / "quits.py"), "a"])), ended.stderr
    ended = run("pytest", "--no-such-flag", folder=tmp_path)
    assert ended.returncode == 4 and "--no-such-flag" in ended.stderr
    assert "lrlora.run: command pytest (" in ended.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["acelerate"], "no command acelerate in this Python; did you mean accelerate?"),
        (["peft"], "there is a module of that name: python -m lrlora.run -m peft"),
        (["ls"], "is no command of a package of this Python"),
        (["-m"], "-m needs the name of a module"),
        (["-m", "no_such.thing"], "no module named no_such.thing"),
        (["--verbose", "pytest"], "TOOL comes first, got --verbose"),
        (["gone.py"], "gone.py: no such script"),
    ],
)  # fmt: skip
def test_a_tool_that_is_not_there_is_refused(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    from lrlora.run import main

    with pytest.raises(lrlora.InputError, match=said.replace("(", r"\(").replace("?", r"\?")):
        main(words)


def test_a_launcher_is_warned_of_and_comes_first_instead(tmp_path):
    (tmp_path / "tool.py").write_text("import peft; print('LRLORA' in peft.PeftType.__members__)")
    alone = ("--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0")
    ended = run("torchrun", *alone, "tool.py", folder=tmp_path)
    assert "False" in ended.stdout
    assert "torchrun starts new Python processes, which do not import lrlora" in ended.stderr
    ended = run(*alone, "-m", "lrlora.run", "tool.py", folder=tmp_path, before=("-m", "torch.distributed.run"))
    assert "True" in ended.stdout, ended.stderr
