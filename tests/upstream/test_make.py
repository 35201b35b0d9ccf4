"""The tree of PEFT that has LR-LoRA inside: how it is made, and that adapters go both ways."""

import difflib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from lrlora import LRLoraConfig, follow_tau
from upstream.make import make
from upstream.parts import Part, edited, read
from upstream.patches import PATCHES
from upstream.sdist import ROOT, unpacked
from upstream.tuner import TARGETS, files

FIELDS = {
    "paper": {},
    "auto": {"tau": "auto", "tau_warmup_steps": 1},
    "carrier": {"carrier": "signs", "share": "type"},
    "linear": {"carrier": "signs", "phi": "linear", "carrier_start": "half"},
    "residual": {"phi": "residual", "share": "frozen", "target_modules": "all-linear"},
    "sine": {"phi": "sine"},
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    try:
        unpacked()
        made = tmp_path_factory.mktemp("upstream") / "tree"
        make(made)
    except RuntimeError as error:
        pytest.skip(f"no package registry: {error}")
    return made


def run_in(tree, code, *arguments):
    """Run code in a process whose peft is the tree's."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-W", "ignore", "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def small_bert():
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=2, max_position_embeddings=16)).eval()


def trained(model):
    ids = torch.arange(12).reshape(2, 6)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(3):
        follow_tau(model.train(), step, 3)
        model(input_ids=ids, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


IN_TREE = """
import json, sys, torch
from pathlib import Path
from peft import LRLoraConfig, PeftModel, get_peft_model
from peft.tuners.lrlora.tau_callback import follow_tau
from transformers import BertConfig, BertForSequenceClassification

assert "lrlora" not in sys.modules
exec(sys.argv[4])
ids = torch.arange(12).reshape(2, 6)
for name, fields in json.loads(sys.argv[1]).items():
    got, given = Path(sys.argv[2]) / name, Path(sys.argv[3]) / name
    model = PeftModel.from_pretrained(small_bert(), got)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, torch.tensor(json.loads((got / "logits.json").read_text())))
    model = trained(get_peft_model(small_bert(), LRLoraConfig(r=2, task_type="SEQ_CLS", **fields)))
    model.save_pretrained(given)
    with torch.no_grad():
        (given / "logits.json").write_text(json.dumps(model(ids).logits.tolist()))
"""


def test_an_adapter_trained_in_either_is_the_same_in_the_other(tree, tmp_path):
    ids = torch.arange(12).reshape(2, 6)
    for name, fields in FIELDS.items():
        model = trained(get_peft_model(small_bert(), LRLoraConfig(r=2, task_type="SEQ_CLS", **fields)))
        model.save_pretrained(tmp_path / "ours" / name)
        with torch.no_grad():
            logits = model(ids).logits.tolist()
        (tmp_path / "ours" / name / "logits.json").write_text(json.dumps(logits))

    same = "\n".join(map(inspect.getsource, (small_bert, trained)))
    ended = run_in(tree, IN_TREE, json.dumps(FIELDS), tmp_path / "ours", tmp_path / "theirs", same)
    assert ended.returncode == 0, ended.stderr

    for name in FIELDS:
        folder = tmp_path / "theirs" / name
        model = PeftModel.from_pretrained(small_bert(), folder)
        with torch.no_grad():
            logits = model(ids).logits
        torch.testing.assert_close(logits, torch.tensor(json.loads((folder / "logits.json").read_text())), msg=name)
        # and training itself is the same in both
        both = [json.loads((tmp_path / side / name / "logits.json").read_text()) for side in ("ours", "theirs")]
        torch.testing.assert_close(torch.tensor(both[0]), torch.tensor(both[1]), msg=name)


def test_lrlora_says_what_to_do_with_a_peft_that_has_the_method(tree):
    ended = run_in(tree, "import lrlora")
    assert ended.returncode == 1
    said = ended.stderr.splitlines()[-1]
    assert re.search(r"^ImportError: peft 0\.\S+ has LR-LoRA itself .*from peft import LRLoraConfig.*pip install", said)


def test_of_peft_s_own_files_nothing_is_taken_away(tree):
    changed = [*PATCHES, *(f"tests/{path.name}" for path in (tree / "tests").glob("test_*.py"))]
    taken = []
    for name in changed:
        if not (unpacked() / name).exists():
            continue
        before, after = ((root / name).read_text(encoding="utf-8").splitlines() for root in (unpacked(), tree))
        taken += [line for line in difflib.unified_diff(before, after, n=0, lineterm="") if re.match(r"-(?!--)", line)]
    # imports that are one line
    assert len(taken) == 3
    assert all(line.startswith("-from peft import ") for line in taken)


def test_every_file_of_ours_is_in_the_table_of_the_docs():
    said = (ROOT / "docs" / "upstream.md").read_text(encoding="utf-8")
    for target in TARGETS:
        (row,) = [line for line in said.splitlines() if line.startswith(f"| `{target.file}` |")]
        missing = [part.file for part in target.parts if f"`{part.file}`" not in row]
        assert not missing, row
    assert {f"`{target.file}`" for target in TARGETS} == set(re.findall(r"(?m)^\| (`\w+\.py`) \|", said))


def test_the_tuner_imports_nothing_of_ours_and_says_nothing_of_it(tree):
    for file in (tree / "src" / "peft" / "tuners" / "lrlora").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"(?<!peft\.tuners\.)\blrlora\.(tuner|method|ops|\w*[cC]allback|follow_tau)", text), file
        assert "InputError" not in text and "# pyright" not in text and "jaxtyping" not in text, file


def test_sources_that_the_edits_do_not_know_stop_the_build(tmp_path):
    shutil.copytree(Path(ROOT) / "src" / "lrlora", tmp_path / "lrlora")
    file = tmp_path / "lrlora" / "tuner" / "config.py"
    file.write_text(
        file.read_text(encoding="utf-8").replace('PeftType("LRLORA")', 'PeftType("OTHER")'), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"tuner/config\.py: needed exactly once, found 0 times"):
        files(tmp_path / "lrlora")


def test_an_edit_that_matches_twice_is_refused():
    with pytest.raises(ValueError, match="found 2 times"):
        edited("a a", [("a", "b")], "text")


def test_a_part_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"method/update\.py has no missing"):
        read(Part("method/update.py", take=("missing",)), ROOT / "src" / "lrlora")


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(ValueError, match="was not made by upstream"):
        make(tmp_path)
    assert (tmp_path / "mine").read_text() == "kept"
