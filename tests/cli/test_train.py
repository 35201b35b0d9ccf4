"""`lrlora train`: what it prints, and what it refuses."""

import json
import subprocess
import sys

import pytest

from tests.cli.commands import match, quick, run
from tests.conftest import write_rows


def test_train_prints_the_result_and_ranks_reads_it_again(capsys, tiny_encoder, sentences, tmp_path):
    status, out, _ = run(capsys, *quick(tiny_encoder, sentences, tmp_path / "run"), "--compare", "True")
    assert status == 0
    assert "bert.encoder.layer.1.attention.self.query" in out
    assert "LR-LoRA" in out and "LoRA" in out and "SR(BA)" in out
    status, out, _ = run(capsys, "ranks", str(tmp_path / "run"), "--json")
    assert status == 0
    saved = json.loads((tmp_path / "run" / "ranks.json").read_text())
    assert [row["stable_rank"] for row in json.loads(out)] == pytest.approx([row["stable_rank"] for row in saved])


def test_json_is_alone_on_stdout(capsys, tiny_encoder, sentences, tmp_path):
    status, out, _ = run(capsys, *quick(tiny_encoder, sentences, tmp_path / "run"), "--json")
    assert status == 0
    assert json.loads(out)["metrics"]["steps"] == 2


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--target_modules", "q_proj"], "no module of .* matches target_modules .* dense, key, query, value"),
        (["--r", "0"], "r must be a whole number of at least 1, got 0"),
        (["--r", "-8"], "got -8"),
        (["--num_basis", "10"], "num_basis must be odd"),
        (["--tau", "0"], "tau must be"),
        (["--tau", "-0.5"], "tau must be"),
        (["--tau", "soon"], "tau must be a number above 0, .* or 'auto', got 'soon'"),
        (["--data", "./missing.jsonl"], "no such file or folder: ./missing.jsonl"),
        (["--model", "./missing"], "no such model folder: ./missing"),
        (["--lr", "1"], r"no such flag: --lr; did you mean --learning_rate\?"),
        (["--learning-rte", "1"], r"no such flag: --learning-rte; did you mean --learning_rate\?"),
        (["--batch", "1"], r"no such flag: --batch; did you mean --batch_size\?"),
        (["--zzzz", "1"], "no such flag: --zzzz; see lrlora train --help"),
        (["--seed", "1", "--seed=2"], "--seed is there twice; pass it once"),
        (["--save_steps", "1", "--save-steps", "2"], "is there twice"),
        (["-q"], "not a flag, nor a value of one: '-q'"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--seed", str(2**40)], "seed must be at most 4294967295, got 1099511627776"),
        (["--epochs", "nan"], "epochs must be a finite number, got nan"),
        (["--learning_rate", "inf"], "learning_rate must be a finite number, got inf"),
        (["--c_learning_rate", "nan"], "c_learning_rate must be a finite number"),
        (["--lora_alpha", "nan"], "lora_alpha must be a finite number"),
        (["--lora_dropout", "nan"], "lora_dropout must be in .0, 1., got nan"),
        (["--kappa=-inf"], "kappa must be a finite number above 0, got -inf"),
        (["--batch_size", "0"], "batch_size must be at least 1, got 0"),
        (["--gradient_accumulation", "-2"], "gradient_accumulation must be at least 1, got -2"),
        (["--warmup_steps", "-1"], "warmup_steps must be at least 0, got -1"),
        (["--max_grad_norm", "-1"], "max_grad_norm must be at least 0"),
        (["--weight_decay", "-0.1"], "weight_decay must be at least 0"),
        (["--tau_warmup_steps", "-1"], "tau_warmup_steps must be a whole number of at least 0"),
        (["--max_steps", "0"], "max_steps must be at least 1, got 0; leave it out to train for epochs"),
        (["--max_steps", "-7"], "max_steps must be at least 1, got -7"),
        (["--split_seed", "-3"], "split_seed must be at least 0"),
        (["--report_to", "wandb"], "report_to wandb: .* requires wandb to be installed"),
        (["--report_to", "abacus"], "report_to abacus: abacus is not supported, only .*tensorboard"),
        (["--out", ""], "out is empty; leave it out for its default"),
        (["--out", "x" * 300], "is too long for the file system; pass a shorter one"),
        (["--out", "/proc/nowhere/run"], "cannot make the folder /proc/nowhere/run: .*; pass another place"),
        (["--out", f"{__file__}/run"], "cannot make the folder .*test_train.py/run: Not a directory"),
        (["--out", __file__], "test_train.py is a file, needed a folder or nothing"),
        (["--r", "eight"], "invalid int value: 'eight'"),
        (["--learning_rate", "-1"], "learning_rate must be above 0"),
        (["--lr_scheduler", "zigzag"], "lr_scheduler must be one of linear, cosine, .*, got 'zigzag'"),
        (["--lr_scheduler", "cosine_with_min_lr"], "pass lr_scheduler_kwargs as well"),
        (["--lr_scheduler", "reduce_lr_on_plateau"], "lr_scheduler must be one of"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, tiny_encoder, sentences, tmp_path, flags, word):
    status, out, err = run(capsys, *quick(tiny_encoder, sentences, tmp_path / "run", *flags))
    assert status == 2
    assert out == ""
    said = [line for line in err.splitlines() if line.startswith("lrlora: ")]
    lines = [line for line in said if not line.startswith("lrlora: memory: about ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    match(word, lines[0])


def test_a_row_without_its_label_is_named(capsys, tiny_encoder, tmp_path):
    rows = [{"sentence": str(n), **({} if n == 4 else {"label": n % 2})} for n in range(12)]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "dev.jsonl", rows[:3])
    status, _, err = run(capsys, *quick(tiny_encoder, tmp_path, tmp_path / "run"))
    assert status == 2
    match("row 5 of 12 has no 'label'", err)


def test_nan_in_the_loss_is_one_line(tiny_encoder, tmp_path):
    rows = [{"sentence": str(n), "label": 1e38 if n == 7 else n / 4} for n in range(24)]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "dev.jsonl", rows[:4])
    more = ["--kind", "regression", "--max_steps", "9", "--batch_size", "4", "--save_steps", "1"]
    flags = quick(tiny_encoder, tmp_path, tmp_path / "run", *more)
    ended = subprocess.run([sys.executable, "-m", "lrlora", *flags], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    match("became NaN or inf .* last good checkpoint", ended.stderr)
    assert "Traceback" not in ended.stderr
