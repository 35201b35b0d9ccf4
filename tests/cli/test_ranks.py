"""`lrlora ranks`: what it refuses."""

from tests.cli.commands import match, quick, run
from tests.conftest import tiny_bert


def test_a_truncated_adapter_and_a_base_of_other_shapes(capsys, tiny_encoder, sentences, tmp_path):
    assert run(capsys, *quick(tiny_encoder, sentences, tmp_path / "run"))[0] == 0
    config = tiny_bert().config
    config.hidden_size, config.intermediate_size = 64, 96
    type(tiny_bert())(config).bert.save_pretrained(tmp_path / "wide")
    status, _, err = run(capsys, "ranks", str(tmp_path / "run"), "--model", str(tmp_path / "wide"))
    assert (status, len(err.strip().splitlines())) == (2, 1)
    match("does not fit this base model", err)
    file = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    status, _, err = run(capsys, "ranks", str(tmp_path / "run"))
    assert (status, len(err.strip().splitlines())) == (2, 1)
    match("not a whole safetensors file", err)
