"""What a verb says where its flags do not make sense."""

import pytest

from lrlora.cli import main


@pytest.mark.parametrize(("verb", "what"), [("study", "study"), ("evaluate", "adapter"), ("merge", "adapter")])
def test_a_flag_before_what_it_is_about_is_explained(capsys, verb, what):
    assert main([verb, "--json"]) == 2
    said = capsys.readouterr().err
    assert f"which {what}? it comes before the flags: lrlora {verb} " in said
