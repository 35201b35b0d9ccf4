"""What happens in a process of its own: registration with PEFT, and its absence."""

import subprocess
import sys

from peft import get_peft_model

from lrlora import LRLoraConfig
from tests.conftest import tiny_bert


def run(code: str) -> subprocess.CompletedProcess:
    """Python code in a fresh process."""
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)


def test_a_process_without_lrlora_refuses_the_adapter_by_name(tmp_path):
    tiny_bert().save_pretrained(tmp_path / "base")
    model = get_peft_model(tiny_bert(), LRLoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    model.save_pretrained(tmp_path / "adapter")
    load = (
        "from peft import PeftModel\nfrom transformers import AutoModelForSequenceClassification as M\n"
        f"base = M.from_pretrained({str(tmp_path / 'base')!r})\n"
        f"print(type(PeftModel.from_pretrained(base, {str(tmp_path / 'adapter')!r})).__name__)\n"
    )
    without = run(load)
    assert without.returncode != 0
    assert "LRLORA" in without.stderr
    with_it = run("import lrlora\n" + load)
    assert with_it.returncode == 0, with_it.stderr
    assert with_it.stdout.strip() == "PeftModelForSequenceClassification"


def test_another_peft_is_refused_in_words():
    found = run("import peft\npeft.__version__ = '0.30.0'\nimport lrlora")
    assert found.returncode != 0
    assert "lrlora needs peft>=0.21,<0.22, got 0.30.0" in found.stderr


def test_the_core_needs_no_training_libraries():
    found = run(
        "import sys, lrlora\n"
        "print([m for m in ('datasets', 'sklearn', 'scipy', 'matplotlib', 'rich', 'jaxtyping') if m in sys.modules])"
    )
    assert found.returncode == 0, found.stderr
    loaded = found.stdout.strip()
    assert "datasets" not in loaded and "matplotlib" not in loaded and "jaxtyping" not in loaded, loaded
