"""What the tests of other training tools share: rows, the tool's own commands, what is true of an adapter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import lrlora
from tests.conftest import write_rows

TARGETS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def is_installed(distribution: str) -> bool:
    """Whether this is the tool's environment."""
    try:
        return bool(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return False


def needs(distribution: str) -> pytest.MarkDecorator:
    """Skips a test outside of the tool's environment."""
    reason = f"{distribution} has an environment of its own: make integrations"
    return pytest.mark.skipif(not is_installed(distribution), reason=reason)


def write_chats(folder: Path) -> None:
    """chats.jsonl and pairs.jsonl: sums of two numbers, and the same with an answer that is rejected."""
    sums = [(a, b) for a in range(4) for b in range(4)]
    asked = [{"role": "user", "content": f"What is {a} plus {b}?"} for a, b in sums]
    answered = [{"role": "assistant", "content": f"It is {a + b}."} for a, b in sums]
    chats = [{"messages": [question, answer]} for question, answer in zip(asked, answered, strict=True)]
    write_rows(folder / "chats.jsonl", chats)
    write_rows(folder / "pairs.jsonl", [{**chat, "rejected_response": "I do not know."} for chat in chats])
    prompts = [
        {"prompt": question["content"], "chosen": answer["content"], "rejected": "I do not know."}
        for question, answer in zip(asked, answered, strict=True)
    ]
    write_rows(folder / "prompts.jsonl", prompts)


def write_yaml(folder: Path, name: str, settings: dict[str, Any]) -> None:
    """A file of settings."""
    (folder / name).write_text(yaml.safe_dump(settings), encoding="utf-8")


def run(folder: Path, *command: str, fails: bool = False, typed: str | None = None) -> str:
    """What a command of the tool's environment prints; it runs in a folder, on the CPU and without a network."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(Path(lrlora.__file__).parents[1]),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "USE_HF": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "DISABLE_VERSION_CHECK": "1",  # LLaMA-Factory's, of peft and others
        "OMP_NUM_THREADS": "1",
    }
    ended = subprocess.run(
        command, cwd=folder, env=environment, input=typed, capture_output=True, text=True, timeout=500
    )
    printed = ended.stdout + ended.stderr
    assert (ended.returncode != 0) == fails, printed[-4000:]
    return printed


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a saved adapter."""
    return load_file(folder / "adapter_model.safetensors")


def assert_same_adapter(folder: Path, other: Path) -> None:
    """Two saved adapters have the same tensors, bit for bit."""
    found, expected = weights(folder), weights(other)
    assert found.keys() == expected.keys() and found
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)


def assert_same_but_for_tau(folder: Path, other: Path) -> None:
    """A saved adapter has the tensors of another, bit for bit; tau, which follows the training, may differ."""
    found, expected = weights(folder), weights(other)
    assert all((found[name] == expected[name]).all() for name in expected if not name.endswith("tau"))


def errors_of(folder: Path, code: str, settings: list[Any]) -> list[str | None]:
    """What code, which reads one file of settings and writes another with an error or null for each, writes."""
    (folder / "many.json").write_text(json.dumps(settings), encoding="utf-8")
    run(folder, "python", "-c", code, "many.json", "errors.json")
    return json.loads((folder / "errors.json").read_text(encoding="utf-8"))


def assert_refused(refused: list[tuple[Any, str]], errors: list[str | None]) -> None:
    """Every change has an error that says what it should."""
    for (change, said), error in zip(refused, errors, strict=True):
        assert error is not None and said in error, (change, error)


def fields_said(folder: Path, code: str) -> list[Any]:
    """What code prints as JSON after FIELDS, among what the tool prints."""
    printed = run(folder, "python", "-c", code)
    line = next(line for line in printed.splitlines() if line.startswith("FIELDS"))
    return json.loads(line.removeprefix("FIELDS"))


def assert_learned(base: Path, adapter: Path, tau: float | str = "auto") -> peft.PeftModel:
    """An adapter loads with plain peft, adapts every linear layer, and B, c and tau have moved; returns the model."""
    saved = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert (saved["peft_type"], saved["tau"], saved["r"], saved["lora_alpha"]) == ("LRLORA", tau, 4, 8)
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    found = lrlora.deltas(model)
    assert len(found) == 2 * len(TARGETS)
    start = torch.tensor(lrlora.LRLoraConfig().starting_coefficients())
    for name, _, _, delta in found:
        assert delta.B.abs().max() > 0, name
        assert delta.c is not None and (delta.c - start).abs().max() > 0, name
        # tau is infinite until the callback sets it
        assert torch.isfinite(delta.tau).all(), name
    assert all(row.stable_rank > 0 for row in lrlora.layer_ranks(model))
    return model


def assert_merged(model: peft.PeftModel, merged: Path) -> None:
    """A merged folder is a plain model that gives the logits of base and adapter, and not those of the base."""
    tokens = torch.arange(500, 520).reshape(2, 10)
    plain = AutoModelForCausalLM.from_pretrained(merged)
    assert not lrlora.deltas(plain)
    with torch.no_grad():
        expected = model.eval()(tokens).logits
        torch.testing.assert_close(plain(tokens).logits, expected, rtol=1e-5, atol=1e-5)
        with model.disable_adapter():
            assert (model(tokens).logits - expected).abs().max() > 1e-2
