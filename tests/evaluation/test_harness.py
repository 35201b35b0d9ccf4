import inspect
import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer

from lrlora.cli import main
from lrlora.evaluation.harness import HarnessOptions, load_harness
from lrlora.saved.load import load_adapter
from lrlora.saved.tokens import load_tokenizer
from lrlora.training import TrainConfig, train
from tests.conftest import tiny_llama, write_rows

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
CHOICES = ["red", "blue", "green"]
ROWS = [{"question": f"the colour of day {n} is", "choices": CHOICES, "label": n % 3} for n in range(12)]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory, embedded_decoder):
    """A random Llama with a tokenizer that adds nothing to a text: lm-eval tokenises context and choice together."""
    folder = tmp_path_factory.mktemp("decoder")
    tokenizer = AutoTokenizer.from_pretrained(embedded_decoder)
    tiny_llama(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, decoder):
    """A run that has learned the colours of some days, and a folder of tasks of lm-eval that ask for them."""
    folder = tmp_path_factory.mktemp("harness")
    data = write_rows(
        folder / "rows.jsonl", [{"prompt": r["question"], "completion": f" {CHOICES[r['label']]}"} for r in ROWS]
    )
    fields = {"max_steps": 25, "batch_size": 12, "r": 4, "learning_rate": 2e-2, "lr_scheduler": "constant"}
    out = folder / "run"
    train(TrainConfig.of(model=str(decoder), data=str(data), eval_data=str(data), out=str(out), **fields))
    (folder / "tasks").mkdir()
    rows = write_rows(folder / "test.jsonl", ROWS)
    for name, fewshot in (("colours", ""), ("colours_alone", "num_fewshot: 0\n")):
        (folder / "tasks" / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {rows}\n"
            f"output_type: multiple_choice\ntest_split: test\nfewshot_split: test\n{fewshot}"
            'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: label\n'
            "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
        )
    return out, str(folder / "tasks")


def by_hand(run, rows) -> float:
    """The fraction of rows whose likeliest choice is right."""
    model, tokenizer = load_adapter(str(run)), load_tokenizer(str(run / "adapter"))
    right = 0
    for row in rows:
        asked = tokenizer(row["question"], add_special_tokens=False)["input_ids"]
        scores = []
        for choice in row["choices"]:
            ids = tokenizer(f"{row['question']} {choice}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append(sum(logits[n - 1, ids[n]].item() for n in range(len(asked), len(ids))))
        right += scores.index(max(scores)) == row["label"]
    return right / len(rows)


def test_every_option_is_lm_eval_s_own():
    from lm_eval import simple_evaluate

    parameters = inspect.signature(simple_evaluate).parameters
    for name in HarnessOptions.__dataclass_fields__:
        assert name == "include_path" or name in parameters
        assert name == "include_path" or parameters[name].default == getattr(HarnessOptions(), name), name


def test_base_adapter_and_merged_model_are_scored_by_lm_eval(run, capsys):
    folder, tasks = run
    words = ["evaluate", str(folder), "--include_path", tasks, "--lm_eval", "colours"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["metric"], found["rows"]) == ("colours", "colours acc", 12)
    assert found["source"].startswith("lm-eval 0.4")
    results = found["results"]
    assert list(results) == ["base", "adapter", "merged"]
    assert results["adapter"]["colours acc"] == results["merged"]["colours acc"] == by_hand(folder, ROWS)
    assert results["adapter"]["colours acc"] > results["base"]["colours acc"]
    assert results["adapter"]["colours acc_stderr"] >= 0
    assert main([*words, "colours_alone", "--limit", "5", "--models", "adapter", "--num_fewshot", "2"]) == 0
    out, err = capsys.readouterr()
    assert "10 rows" in out and "colours_alone acc" in out
    assert "colours_alone is asked without examples: its task file sets num_fewshot to 0" in err


def test_a_merged_folder_is_scored_alone(run, tmp_path, capsys):
    folder, tasks = run
    assert main(["merge", str(folder), "--out", str(tmp_path / "merged")]) == 0
    capsys.readouterr()
    words = ["--lm_eval", "colours", "--include_path", tasks, "--limit", "4", "--json"]
    assert main(["evaluate", str(tmp_path / "merged"), *words]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["model"]["colours acc"] == by_hand(folder, ROWS[:4])


def test_the_random_numbers_of_the_process_are_left(run):
    folder, tasks = run
    harness = load_harness(["colours"], HarnessOptions(include_path=tasks, limit=2))
    model, tokenizer = load_adapter(str(folder)), load_tokenizer(str(folder / "adapter"))
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    harness.score(model, tokenizer)
    torch.testing.assert_close(torch.rand(3), wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--lm_eval", "hellaswag"), "lm-eval cannot load hellaswag: "),
        (("--lm_eval", "no_such_task"), "no_such_task"),
        (("--lm_eval", "hellaswag", "--limit", "0"), "limit must be above 0"),
        (("--lm_eval", "hellaswag", "--commonsense", "obqa"), "--lm_eval has its own rows"),
        (("--num_fewshot", "5"), "--num_fewshot is of --lm_eval"),
    ],
)
def test_what_cannot_be_scored_is_refused(words, said, run, capsys):
    assert main(["evaluate", str(run[0]), *words]) == 2
    err = capsys.readouterr().err
    assert said in err.splitlines()[-1], err


def test_lm_eval_s_own_command_scores_an_adapter_the_same(run, decoder, tmp_path):
    folder, tasks = run
    model = f"pretrained={decoder},peft={folder / 'adapter'},dtype=float32"
    words = ["--model", "hf", "--model_args", model, "--tasks", "colours_alone", "--include_path", tasks]
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "lrlora.run", "lm_eval", *words, "--output_path", str(tmp_path)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    (written,) = tmp_path.rglob("results_*.json")
    found = json.loads(written.read_text())["results"]["colours_alone"]
    assert found["acc,none"] == by_hand(folder, ROWS)
