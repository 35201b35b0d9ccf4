"""What the tests share: no hub, shapes checked at run time, tiny models, and small data files written by hand."""

from __future__ import annotations

import builtins
import json
import os
import signal
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# a shell starts what it puts into the background deaf to SIGINT, and so would be the processes that tests interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)

import jaxtyping

# method/ and ops/ name shapes by a type that only type checkers import; here it is real, and checked in every call
builtins.Float = jaxtyping.Float  # pyright: ignore[reportAttributeAccessIssue]
# (not in the Triton kernels, whose source Triton reads itself)
jaxtyping.install_import_hook(
    ["lrlora.method", "lrlora.ops.linear", "lrlora.ops.dispatch", "lrlora.ops.eager", "lrlora.ops.passes"],
    "beartype.beartype",
)

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, LlamaConfig, LlamaForCausalLM

import lrlora

BENCHMARK_DATA = Path(os.environ.get("LRLORA_DATA") or os.devnull)
"""Real benchmark data in jsonl.gz, no part of the project; without LRLORA_DATA the tests that read it skip."""


LONGEST = (
    "distributed/test_distributed.py",
    "test_notebooks.py",
    "distributed/test_command_line.py",
    "peft_study/test_workers.py",
    "peft_study/test_images.py",
    "distributed/test_accelerate.py",
    "test_examples.py",
    "peft_study/test_cli.py",
)
"""Files of one to four minutes: they come first, or one process would be left with one while the other waits."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long first; the others in their order."""
    here = Path(__file__).parent
    assert all((here / name).is_file() for name in LONGEST)
    place = {str(here / name): number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(str(item.path), len(place)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def unchecked_shapes():
    """The checks of jaxtyping mistake the symbols of torch.compile for wrong shapes, and break its compilations."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def tiny_bert(labels: int = 3) -> BertForSequenceClassification:
    """Two blocks of 32, random weights."""
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        num_labels=labels,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config).eval()


def tiny_llama(vocabulary: int = 64, length: int = 128, pad: int = 0, bos: int = 1, eos: int = 2) -> LlamaForCausalLM:
    """Two blocks of 32, random weights; reads so many tokens, of which some have the numbers of special ones."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=length,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    return LlamaForCausalLM(config).eval()


def token_ids(rows: int = 2, length: int = 7) -> torch.Tensor:
    """The same random token numbers in every test."""
    return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(5))


def disturb(model: nn.Module, adapter_name: str | None = None) -> None:
    """Move A, B and c away from their start, so that the update is not zero and phi is its own in every layer."""
    generator = torch.Generator().manual_seed(7)
    for _, _, _, delta in lrlora.tuner.deltas(model, adapter_name):
        with torch.no_grad():
            delta.B.copy_(0.02 * torch.randn(delta.B.shape, generator=generator))
            if delta.theta is not None:
                delta.theta.add_(0.01 * torch.randn(delta.theta.shape, generator=generator))


def move_knees(model: nn.Module, step: int, total_steps: int) -> bool:
    """What a training loop does at the beginning of a step: `follow_tau`, then the forward pass in training."""
    is_moving = lrlora.follow_tau(model, step=step, total_steps=total_steps)
    with torch.no_grad():
        model.train()(token_ids())
    model.eval()
    return is_moving


def rel_rms(value: torch.Tensor, truth: torch.Tensor) -> float:
    """Relative root mean square error against a float64 truth."""
    return ((value.double() - truth).norm() / truth.norm().clamp(min=1e-300)).item()


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Rows as a jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _folder_or_skip(model: str) -> Path:
    """Folder of an embedded model; skips the test where the package that carries it is not installed."""
    from lrlora.data import embedded

    try:
        return getattr(embedded, f"{model}_folder")()
    except lrlora.InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def embedded_encoder() -> Path:
    """Folder of the embedded pretrained encoder."""
    return _folder_or_skip("encoder")


@pytest.fixture(scope="session")
def embedded_decoder() -> Path:
    """Folder of the embedded pretrained causal model; the first time on a machine it takes half a minute."""
    return _folder_or_skip("decoder")


@pytest.fixture(scope="session")
def embedded_vision() -> Path:
    """Folder of the embedded image model; the first time on a machine it takes a second."""
    return _folder_or_skip("vision")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory, embedded_encoder: Path) -> Path:
    """A model folder that trains in a second: a random BERT with the embedded encoder's tokenizer."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tiny-encoder")
    tokenizer = AutoTokenizer.from_pretrained(embedded_encoder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    torch.manual_seed(1)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory, embedded_encoder: Path) -> Path:
    """A random Llama with the embedded encoder's tokenizer."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tiny-decoder")
    tokenizer = AutoTokenizer.from_pretrained(embedded_encoder)
    tokenizer.eos_token = tokenizer.sep_token
    tiny_llama(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentence_rows() -> list[dict]:
    """48 sentences of two kinds."""
    words = ("good", "bright", "kind", "warm"), ("bad", "dark", "cruel", "cold")
    return [
        {"sentence": f"a {word} and {other} day number {n}", "label": label}
        for n in range(3)
        for label, group in enumerate(words)
        for word in group
        for other in group[:2]
    ]


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    """A folder with train.jsonl and validation.jsonl: sentences of two kinds."""
    rows = sentence_rows()
    folder = tmp_path / "sentences"
    folder.mkdir()
    write_rows(folder / "train.jsonl", rows[:36])
    write_rows(folder / "validation.jsonl", rows[36:])
    return folder
