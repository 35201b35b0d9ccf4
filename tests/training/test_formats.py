"""Rows of every format are trained on, killed and resumed to the last bit, and exactly the right tokens are learned."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lrlora.data import DataSource, load_task
from lrlora.data.encode import IGNORED, encode
from lrlora.training import TrainConfig
from lrlora.training.trainer import make_trainer
from tests.conftest import BENCHMARK_DATA, write_rows

CHATML = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for call in m.get('tool_calls') or [] %}{{ call['function'] | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALL = json.dumps({"name": "sky", "arguments": {"day": 3}})
TOOLS = json.dumps([{"name": "sky", "description": "colour of the sky", "parameters": {}}])
FORMATS = {
    "messages": lambda n: {
        "messages": [{"role": "user", "content": f"Day {n}?"}, {"role": "assistant", "content": f"Bright, {n}."}]
    },
    "sharegpt": lambda n: {
        "system": "Be kind.",
        "conversations": [{"from": "human", "value": f"Day {n}?"}, {"from": "gpt", "value": f"Bright, {n}."}],
    },
    "tools": lambda n: {
        "conversations": [
            {"from": "human", "value": f"Day {n}?"}, {"from": "function_call", "value": CALL},
            {"from": "observation", "value": '{"colour": "blue"}'}, {"from": "gpt", "value": f"Blue on {n}."},
        ],
        "tools": TOOLS,
    },
    "prompt": lambda n: {"prompt": f"The day {n} is", "completion": " bright."},
    "prompt_messages": lambda n: {
        "prompt": [{"role": "user", "content": f"Day {n}?"}],
        "completion": [{"role": "assistant", "content": f"Bright, {n}."}],
    },
    "alpaca": lambda n: {"instruction": "Describe the day.", "input": f"{n}", "output": f"Bright, {n}."},
    "text": lambda n: {"text": f"The day {n} is bright."},
    "txt": lambda n: f"The day {n} is bright.",
    "pairs": lambda n: {"prompt": f"The day {n} is", "chosen": " bright.", "rejected": " dark."},
    "pairs_sharegpt": lambda n: {
        "conversations": [{"from": "human", "value": f"Day {n}?"}],
        "chosen": {"from": "gpt", "value": f"Bright, {n}."},
        "rejected": {"from": "gpt", "value": "Dark."},
    },
    "pairs_implicit": lambda n: {
        "chosen": [{"role": "user", "content": f"Day {n}?"}, {"role": "assistant", "content": "Bright."}],
        "rejected": [{"role": "user", "content": f"Day {n}?"}, {"role": "assistant", "content": "Dark."}],
    },
}  # fmt: skip

# the children are forked after the libraries are imported, which takes longer than all of the trainings
RUNS = """
import hashlib, json, os, signal, sys
from pathlib import Path
from transformers import TrainerCallback
from lrlora.training import TrainConfig, train

class Killed(TrainerCallback):
    def on_step_begin(self, args, state, control, **named):
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGKILL)

def child(config, callbacks):
    pid = os.fork()
    if not pid:
        train(config, callbacks)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def digest(out):
    return hashlib.sha256((Path(out) / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()

base, folder, packs = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
for file in sorted(folder.glob("rows_*")):
    more = {"packing": True} if file.stem in packs else {}
    given = dict(model=base, data=str(file), max_steps=2, save_steps=1, batch_size=2, r=2, max_length=64, rank_steps=0,
                 lora_dropout=0.1, logging_steps=1, **more)
    whole, cut = (TrainConfig.of(out=str(folder / f"{kind}_{file.stem}"), **given) for kind in ("whole", "cut"))
    ends = child(whole, []), child(cut, [Killed()]), child(cut, [])
    again = json.loads((folder / f"cut_{file.stem}" / "metrics.json").read_text())["was_resumed"]
    print(json.dumps([file.stem, ends, again, digest(whole.out) == digest(cut.out)]), flush=True)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory, embedded_decoder) -> Path:
    """A tiny random Llama with SmolLM2's tokenizer, and a chat template that knows tools."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = AutoTokenizer.from_pretrained(embedded_decoder)
    tokenizer.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=2048, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_every_format_resumes_to_the_last_bit_after_a_kill(base, tmp_path):
    for name, row in FORMATS.items():
        rows = [row(n) for n in range(12)]
        if name == "txt":
            (tmp_path / "rows_txt.txt").write_text("\n\n".join(rows), encoding="utf-8")
        else:
            write_rows(tmp_path / f"rows_{name}.jsonl", rows)
    command = [sys.executable, "-W", "ignore", "-c", RUNS, str(base), str(tmp_path), json.dumps(["rows_messages"])]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = list(map(json.loads, ended.stdout.splitlines()))
    assert found == [[f"rows_{name}", [0, 9, 0], True, True] for name in sorted(FORMATS)], ended.stderr[-3000:]


def real_rows(name: str, count: int) -> list[dict]:
    """The shortest rows of a file of real chats."""
    file = BENCHMARK_DATA / "chat" / f"{name}.jsonl.gz"
    if not file.exists():
        pytest.skip(f"LRLORA_DATA has no chat/{name}.jsonl.gz")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return sorted(map(json.loads, lines), key=lambda row: len(json.dumps(row)))[:count]


@pytest.mark.parametrize("name", ["alpaca_en_demo", "glaive_toolcall_en_demo", "v1_sft_demo"])
def test_packed_real_chats_learn_what_the_assistant_says_and_nothing_else(name, base, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", real_rows(name, 40))
    task, tokenizer = load_task(DataSource(str(file))), AutoTokenizer.from_pretrained(base)
    rows, _ = encode(task, tokenizer, 1024)
    model = LlamaForCausalLM.from_pretrained(base)
    config = TrainConfig.of(model=str(base), data=str(file), packing=True, batch_size=2, precision="fp32")
    trainer = make_trainer(config, task, model, tokenizer, rows, tmp_path, length=1024)
    packed = {}
    for batch in trainer.get_train_dataloader():
        places = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
        for begin, end in zip(places, [*places[1:], batch["input_ids"].shape[1]], strict=True):
            labels = batch["labels"][0, begin:end].tolist()
            packed.setdefault(tuple(batch["input_ids"][0, begin:end].tolist()), []).append(labels)
    assert sum(map(len, packed.values())) == len(rows)
    for row, given in zip(rows, task.train, strict=True):
        # nothing comes before the first token of a document that could predict it
        found = packed[tuple(row["input_ids"])].pop()
        assert found[1:] == row["labels"][1:] and found[0] == IGNORED
        learned = "".join(
            tokenizer.decode([token], skip_special_tokens=False) for token in row["labels"] if token != IGNORED
        )
        assert learned == "".join(f"{answer}<|im_end|>" for answer in answers(given)), given


def answers(row: dict) -> list[str]:
    """What the assistant says in a row, as the template writes it."""
    if "answer" in row:
        return [row["answer"]]
    calls = [
        (each, "".join(json.dumps(call["function"], ensure_ascii=False) for call in each.get("tool_calls", ())))
        for each in json.loads(row["messages"])
        if each["role"] == "assistant" and each["weight"]
    ]
    return [each["content"] + said for each, said in calls]
