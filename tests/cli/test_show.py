"""Tables on stdout: whole names in a pipe, and a column of gates only where there are any."""

from dataclasses import replace

from lrlora.cli.show import print_ranks, print_warnings
from lrlora.ranks import LayerRank

NAME = "roberta.encoder.layer.11.attention.output.dense"
ROW = LayerRank(
    layer=NAME, block=11, kind="attention", module="query", stable_rank=12.34, stable_rank_ba=2.5, effective_rank=None,
    numerical_rank=31, constant_share=0.025, rms_over_tau=1.5, outside_grid=0.0, relative_norm=None,
)  # fmt: skip


def test_a_pipe_gets_whole_names_and_what_was_not_measured_is_a_dash(capsys):
    print_ranks([ROW])
    out = capsys.readouterr().out
    [line] = [line for line in out.splitlines() if NAME in line]
    assert [cell.strip() for cell in line.strip("│┃ ").split("│")] == [
        NAME, "attention", "12.34", "2.50", "-", "31", "2.5%", "1.50", "-"
    ]  # fmt: skip
    assert "gate" not in out


def test_gates_are_a_column_where_a_layer_has_one(capsys):
    print_ranks([replace(ROW, layer="a", gate=0.25), replace(ROW, layer="b")])
    lines = capsys.readouterr().out.splitlines()
    assert any("gate" in line for line in lines)
    assert [line.strip("│┃ ").split("│")[-1].strip() for line in lines if "attention" in line] == ["0.250", "-"]


def test_warnings_are_lines_on_stderr(capsys):
    print_warnings(["one", "two"])
    assert capsys.readouterr() == ("", "warning: one\nwarning: two\n")
