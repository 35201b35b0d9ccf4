"""Facts to be memorised: which they are, what is counted, and what of it a study shows."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lrlora import InputError
from lrlora.cli.main import main
from lrlora.data.facts import MOST_VALUES, drawn_facts, encode_recalled, read_facts, written
from lrlora.data.source import DataSource
from peft_study import Machines, read_study, run_study
from peft_study.answers import summary_lines
from peft_study.base import blocks_of, keep_blocks
from peft_study.capacity import score_facts
from peft_study.capacity_figures import capacity_figures
from peft_study.cell import Bench
from peft_study.estimate import estimates
from peft_study.facts import encode_facts, load_facts
from peft_study.kinds import load_parts
from peft_study.page import study_section, write_report
from peft_study.plan import cell_of, chosen_rate, digests_of, final_cells, search_cells
from peft_study.spec import Arm, Study, Task, Training
from peft_study.store import read_rows
from peft_study.summary import summary
from tests.conftest import BENCHMARK_DATA, tiny_bert, tiny_llama, write_rows
from tests.peft_study.conftest import a_row

ALONE = Machines(workers=1, threads=1)
STUDIES = Path(__file__).parents[2] / "studies"
LORA = Arm("lora", "lora", {"r": 2})
OPEN = Arm("open", "lrlora", {"r": 2, "carrier": "signs", "carrier_start": "open"})
EVERY = (
    LORA, OPEN, Arm("rslora", "rslora", {"r": 2}), Arm("dora", "dora", {"r": 2}), Arm("hira", "hira", {"r": 2}),
    Arm("randlora", "randlora", {"r": 4}), Arm("vera", "vera", {"r": 4}), Arm("sine", "sine", {"r": 2}),
    Arm("loha", "loha", {"r": 2}), Arm("full", "full"),
)  # fmt: skip


def facts_study(model: Path | str | None, arms=(LORA,), task: dict | None = None, **fields) -> Study:
    """Twenty drawn facts of four answers, three steps, one rate and one seed."""
    chosen = {"kind": "facts", "facts": 20, "values": 4, "max_steps": 3, "batch_size": 10, "max_length": 32}
    return Study(
        study="held",
        arms=tuple(arms),
        tasks=(Task("drawn", **{**chosen, **(task or {})}),),
        **{"learning_rates": (1e-3,), "seeds": (0,), "model": None if model is None else str(model), **fields},
    )


def pairs_file(folder: Path, many: int = 6) -> Path:
    """Pairs of a question and an answer; the third row repeats the first question."""
    rows = [{"english": f"thing {n}", "german": f"ding {n * n}"} for n in range(many)]
    return write_rows(folder / "pairs.jsonl", [*rows[:2], {"english": "thing 0", "german": "other"}, *rows[2:]])


def pairs_of(file: Path, **fields) -> dict:
    columns = {"question_column": "english", "answer_column": "german"}
    return {"facts": None, "values": 16, "data": str(file), **columns, **fields}


def run_one(study: Study, arm: Arm | None = None, bench: Bench | None = None) -> dict:
    """The final cell of an arm at the study's first rate."""
    cell = final_cells(study, digests_of(study), arm or study.arms[0], study.tasks[0], study.learning_rates[0])[0]
    row = (bench or Bench(study)).run(cell)
    assert row.status == "done", (row.reason, row.traceback)
    return row


def test_drawn_facts_are_the_same_in_every_process_and_fewer_are_the_first_of_more():
    facts = drawn_facts(300, 16)
    assert facts.questions[:2] == ["the friend of sobopu", "the ship of madogo"]
    assert facts.answers[:4] == ["guse", "bosu", "sapa", "puzo"]
    assert len(set(facts.questions)) == 300
    assert len(set(facts.values)) == 16
    assert set(facts.answers) == set(facts.values)
    fewer = drawn_facts(20, 16)
    assert (fewer.questions, fewer.answers, fewer.values) == (facts.questions[:20], facts.answers[:20], facts.values)
    assert drawn_facts(20, 8).answers != fewer.answers
    for count, values in ((0, 16), (10**9, 16), (10, 1), (10, MOST_VALUES + 1)):
        with pytest.raises(InputError, match="got"):
            drawn_facts(count, values)


def test_every_arm_and_seed_and_phase_gets_the_same_facts(tiny_encoder):
    study = facts_study(tiny_encoder, arms=(LORA, OPEN), learning_rates=(1e-3, 1e-2), seeds=(0, 1), search_seeds=(7,))
    digests, task = digests_of(study), study.tasks[0]
    cells = [
        cell
        for arm in study.arms
        for cell in (*search_cells(study, digests, arm, task), *final_cells(study, digests, arm, task, 1e-3))
    ]
    assert len({cell.rows for cell in cells}) == 1
    assert len({cell.fingerprint for cell in cells}) == len(cells) == 8
    parts = load_parts(study, task)
    assert parts.search.evaluation is parts.final.evaluation is parts.final.train
    assert parts.final.train[0]["text"] == f"{drawn_facts(1, 4).questions[0]} is"
    assert parts.final.labels == drawn_facts(1, 4).values


def test_the_first_pairs_of_a_file_without_repeated_questions(tmp_path):
    facts = read_facts(DataSource(str(pairs_file(tmp_path))), "english", "german", 3)
    assert facts.questions == ["thing 0", "thing 1", "thing 2"]
    assert facts.answers == ["ding 0", "ding 1", "ding 4"]
    assert [note.split(": ")[1] for note in facts.notes] == [
        "1 of the first 4 rows repeat a question and were dropped; the first answer of each was kept"
    ]
    assert read_facts(DataSource(str(tmp_path / "pairs.jsonl")), "english", "german", 2).notes == ()
    with pytest.raises(InputError, match=r"has 6 different questions in its 7 rows, fewer than the 7 facts"):
        read_facts(DataSource(str(tmp_path / "pairs.jsonl")), "english", "german", 7)
    with pytest.raises(InputError, match="no column 'deutsch', got columns english, german"):
        read_facts(DataSource(str(tmp_path / "pairs.jsonl")), "english", "deutsch")
    scores = write_rows(tmp_path / "scores.jsonl", [{"q": "a", "a": 0.5}])
    with pytest.raises(InputError, match="has a float in 'a', needed a text"):
        read_facts(DataSource(str(scores)), "q", "a")
    empty = write_rows(tmp_path / "empty.jsonl", [{"q": "a", "a": "b"}, {"q": "b", "a": " "}])
    with pytest.raises(InputError, match="row 2 of 2 has an empty 'q' or 'a'"):
        read_facts(DataSource(str(empty)), "q", "a")


def test_the_loss_sees_the_answer_and_the_end_alone(tiny_decoder, embedded_decoder, tmp_path):
    from datasets import Dataset

    text, prompt = written("{question} = {answer}", "one thing", "eins")
    assert (text, prompt) == ("one thing = eins", "one thing = ")
    rows = Dataset.from_dict({"text": [text], "prompt": [prompt]})
    for folder in (tiny_decoder, embedded_decoder):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        encoded = encode_recalled(rows, tokenizer, 32)[0]
        answer = [token for token in encoded["labels"] if token != -100]
        assert tokenizer.decode(answer[:-1]).strip() == "eins"
        assert answer[-1] == tokenizer.eos_token_id
        assert encoded["input_ids"][-len(answer) :] == answer
        assert encoded["labels"][: -len(answer)] == [-100] * (len(encoded["input_ids"]) - len(answer))
    with pytest.raises(InputError, match=r"fact 1 has \d+ tokens, more than max_length 3, and a fact that is cut"):
        encode_recalled(rows, AutoTokenizer.from_pretrained(tiny_decoder), 3)


def test_bits_of_a_classifier_are_those_counted_by_hand(tiny_encoder):
    study = facts_study(tiny_encoder)
    data, tokenizer = load_facts(study, study.tasks[0]), AutoTokenizer.from_pretrained(tiny_encoder)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=4)
    with torch.no_grad():
        model.classifier.weight.mul_(30)
    found = score_facts(model, tokenizer, data, encode_facts(data, tokenizer, 32))
    bits, right = 0.0, 0
    with torch.no_grad():
        for row in data.train.to_list():
            logits = model.eval()(**tokenizer(row["text"], return_tensors="pt")).logits[0].double()
            chance = torch.softmax(logits, 0)[row["label"]].item()
            bits += 2 + math.log2(chance)
            right += int(logits.argmax()) == row["label"]
    assert found["bits"] == pytest.approx(bits, abs=1e-3)
    assert found["exact_recall"] == right / 20
    assert found["nats_per_fact"] == pytest.approx((2 - bits / 20) * math.log(2), abs=1e-5)
    assert found["loss"] == found["nats_per_fact"]
    trained = sum(p.numel() for p in model.parameters())
    assert found["bits_per_parameter"] == pytest.approx(bits / trained, abs=1e-6)


def test_recall_of_a_causal_model_is_what_greedy_decoding_gives(tiny_decoder, tmp_path):
    study = facts_study(tiny_decoder, task=pairs_of(pairs_file(tmp_path)))
    data, tokenizer = load_facts(study, study.tasks[0]), AutoTokenizer.from_pretrained(tiny_decoder)
    encoded = encode_facts(data, tokenizer, 32)
    # all its weights for a few steps, so that some answers are known and some are not
    model = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    recalls = set()
    for step in range(60):
        for row in encoded.to_list():
            batch = {name: torch.tensor([row[name]]) for name in ("input_ids", "labels")}
            model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 6 != 5:
            continue
        found = score_facts(model, tokenizer, data, encoded)
        right, nats = 0, 0.0
        with torch.no_grad():
            for row in encoded.to_list():
                answer = [token for token in row["labels"] if token != -100]
                ids = list(row["input_ids"][: -len(answer)])
                logs = torch.log_softmax(model(torch.tensor([row["input_ids"]])).logits[0].double(), -1)
                nats -= sum(logs[len(ids) + n - 1, token].item() for n, token in enumerate(answer))
                for _ in answer:
                    ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
                right += ids[-len(answer) :] == answer
        assert found["exact_recall"] == right / 6
        assert found["nats_per_fact"] == pytest.approx(nats / 6, rel=1e-5)
        assert "bits" not in found
        recalls.add(right)
    assert len(recalls) > 2
    assert max(recalls) == 6


@pytest.mark.parametrize("arm", EVERY, ids=lambda arm: arm.name)
def test_every_arm_adapts_the_blocks_of_an_encoder_and_leaves_its_head_alone(tiny_encoder, arm):
    study = facts_study(tiny_encoder, arms=(arm,), blocks=1, task={"pooling": "mean"})
    row = run_one(study)
    assert row.metric == "bits"
    assert row.value == row.metrics["bits"] < 12
    assert row.metrics["bits_per_parameter"] == row.value / row.trainable_parameters
    assert estimates(study)[0].trainable_parameters == row.trainable_parameters
    if arm.name == "lora":
        # q, k, v, o of 32 x 32; 32 to 48 and back; nothing of a second block, a pooler or the head
        assert row.trainable_parameters == 2 * (4 * 64 + 2 * 80)
    if arm.name == "full":
        assert row.total_parameters - row.trainable_parameters == 4 * 32 + 4


@pytest.mark.parametrize("arm", (LORA, OPEN, EVERY[5], EVERY[6]), ids=lambda arm: arm.name)
def test_arms_on_a_causal_model(tiny_decoder, arm):
    study = facts_study(tiny_decoder, arms=(arm,), blocks=1)
    row = run_one(study)
    # the vocabulary of a fresh model is far larger than four answers
    assert row.metric == "bits"
    assert row.value < 0
    assert estimates(study)[0].trainable_parameters == row.trainable_parameters


def test_an_untrained_adapter_holds_nothing(embedded_encoder):
    study = facts_study(None, blocks=2, task={"facts": 60, "values": 16, "pooling": "mean"}, learning_rates=(1e-12,))
    assert abs(run_one(study).value) < 0.05 * 60 * 4


def test_lora_on_two_blocks_of_the_embedded_encoder_learns_sixty_facts(embedded_encoder):
    task = {"facts": 60, "values": 16, "pooling": "mean", "max_steps": 50, "batch_size": 60}
    row = run_one(facts_study(None, blocks=2, task=task, learning_rates=(2e-2,)))
    # of 240 bits, where the start has none
    assert row.metrics["bits"] > 60
    assert row.metrics["exact_recall"] > 0.3


def test_what_an_arm_holds_over_its_seeds_and_beside_the_reference():
    def row(arm, seed, bits, recall):
        metrics = {"bits": bits, "bits_per_parameter": bits / 50, "exact_recall": recall, "nats_per_fact": 1.0}
        done = {"metric": "bits", "value": bits, "metrics": metrics, "loss": 1.0, "train_rows": 9}
        return a_row(task="d", arm=arm, seed=seed, trainable_parameters=50, **done)

    rows = [row("lora", seed, 10.0 + seed, 0.5) for seed in range(3)]
    rows += [row("ours", seed, (10.0 + seed) * ratio, 1.0) for seed, ratio in enumerate((2.0, 3.0, 4.0))]
    lora, ours = (result.capacity for result in summary(rows, "lora"))
    assert lora is not None and ours is not None
    assert (lora.facts, lora.ratio, lora.unrelated_nats_after) == (9, None, None)
    assert lora.bits is not None and (lora.bits.mean, lora.bits.n) == (11.0, 3)
    assert lora.bits_per_parameter is not None and lora.bits_per_parameter.mean == pytest.approx(0.22)
    assert ours.exact_recall is not None and (ours.exact_recall.low, ours.exact_recall.high) == (1.0, 1.0)
    # t of two degrees of freedom, 4.3027, times 1 / sqrt(3)
    assert ours.ratio is not None and ours.ratio.mean == pytest.approx(3.0)
    assert ours.ratio.low == pytest.approx(3 - 4.3027 / 3**0.5, abs=1e-3)
    rows[0] = dataclasses.replace(rows[0], value=-1.0)
    nothing = summary(rows, "lora")[1].capacity
    assert nothing is not None and nothing.ratio is None


def test_forgetting_is_measured_from_one_number(tiny_decoder):
    study = facts_study(
        tiny_decoder, arms=(LORA, OPEN), task={"forgetting": 5, "max_steps": 20}, learning_rates=(5e-2,)
    )
    bench = Bench(study)
    rows = [run_one(study, arm, bench) for arm in study.arms]
    before = {row.metrics["unrelated_nats_before"] for row in rows}
    assert len(before) == 1
    # the same model would be scored the same to the tenth digit
    assert all(abs(row.metrics["unrelated_nats_after"] - next(iter(before))) > 1e-4 for row in rows)
    # the same number as without any of it
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_decoder), AutoModelForCausalLM.from_pretrained(tiny_decoder)
    texts = load_parts(study, study.tasks[0]).further["final"]["unrelated"]
    assert len(set(texts)) == 5
    total = tokens = 0.0
    with torch.no_grad():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=128)["input_ids"]
            total += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
    assert before.pop() == pytest.approx(total / tokens, rel=1e-5)
    held = summary(rows)[0].capacity
    assert held is not None and held.unrelated_nats_after is not None
    more = dataclasses.replace(study, tasks=(dataclasses.replace(study.tasks[0], forgetting=6),))
    assert digests_of(more).rows != digests_of(study).rows
    with pytest.raises(InputError, match=r"there are \d+ different articles of BBC News, got 99999"):
        digests_of(dataclasses.replace(study, tasks=(dataclasses.replace(study.tasks[0], forgetting=99999),)))


def test_what_is_forgotten_is_measured_in_one_precision(tiny_decoder):
    found = {}
    for precision in ("fp32", "bf16"):
        # a rate that changes nothing: what differs would be the precision
        study = facts_study(
            tiny_decoder, task={"forgetting": 2}, learning_rates=(1e-12,), training=Training(precision=precision)
        )
        found[precision] = run_one(study).metrics
        assert found[precision]["unrelated_nats_after"] == pytest.approx(
            found[precision]["unrelated_nats_before"], abs=1e-7
        )
    assert abs(found["fp32"]["unrelated_nats_before"] - found["bf16"]["unrelated_nats_before"]) > 1e-6
    assert found["fp32"]["bits"] != found["bf16"]["bits"]


def test_the_search_of_pairs_looks_at_the_nats_and_a_rate_that_diverges_has_lost(tiny_decoder, tmp_path, capsys):
    task = pairs_of(pairs_file(tmp_path), facts=6)
    study = facts_study(
        tiny_decoder, task=task, learning_rates=(1e-4, 1e-2, 1e30), training=Training(max_grad_norm=1e9)
    )
    told: list[str] = []
    rows = run_study(study, tmp_path / "out", ALONE, tell=told.append)
    assert [(r.phase, r.status, r.metric) for r in rows] == [
        ("search", "done", "nats_per_fact"), ("search", "done", "nats_per_fact"), ("search", "diverged", None),
        ("final", "done", "exact_recall"),
    ]  # fmt: skip
    best = min(rows[:2], key=lambda row: row.metrics["nats_per_fact"])
    assert chosen_rate(rows[:3]) == rows[3].learning_rate == best.learning_rate == 1e-2
    assert any(line.endswith("this rate has lost") for line in told)
    assert any("1 of the first 7 rows repeat a question" in line for line in told)
    found = summary(rows)[0]
    assert (found.failed, found.diverged, found.rates_tried, found.at_the_edge) == (
        0,
        (1e30,),
        (1e-4, 1e-2, 1e30),
        False,
    )
    assert found.capacity is not None and found.capacity.bits is None
    assert any("diverged at the learning rates 1e+30; they have lost" in line for line in summary_lines([found]))
    # nothing is left to do, also where failed cells run again
    again: list[str] = []
    assert run_study(study, tmp_path / "out", ALONE, retry_failed=True, tell=again.append) == rows
    assert again == []


def test_the_command_shows_what_arms_hold_and_so_does_the_page(tiny_encoder, tmp_path, capsys):
    tasks = [{"name": f"d{n}", "kind": "facts", "facts": n, "values": 4, "max_steps": 2} for n in (10, 20)]
    described = {
        "study": "held", "learning_rates": [1e-3], "seeds": [0, 1], "model": str(tiny_encoder), "blocks": 1,
        "tasks": tasks,
        "arms": [{"name": "lora", "method": "lora", "r": 2}, {"name": "four", "method": "lora", "r": 4}],
    }  # fmt: skip
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps(described))  # JSON is YAML
    assert main(["study", str(file), "--dry_run"]) == 0
    assert main(["study", str(file), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "d20: what the arms hold" in shown
    assert "of all facts" in shown
    section = study_section(tmp_path / "out")
    assert section is not None
    assert [words.split(",")[0] for words, _ in section.capacity] == [
        "bits over the number of facts", "bits over trained parameters",
    ]  # fmt: skip
    lines = section.capacity[0][1].data
    assert [(line.name, list(line.x)) for line in lines] == [("lora", [10, 20]), ("four", [10, 20])]
    assert [r.test.mean for r in section.results if r.arm == "lora" and r.test] == list(lines[0].y)
    write_report([tmp_path / "out"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "What the arms hold" in page
    assert 'data-figure="capacity-0-1"' in page


def test_many_arms_are_shown_in_the_order_of_what_they_hold():
    rows = read_rows(STUDIES / "results" / "facts-encoder" / "results.jsonl")
    figures = capacity_figures(summary(rows, "lora-r1", 0.0))
    assert [words.split(",")[0] for words, _ in figures] == [
        "bits over trained parameters",
        "bits of every arm in order",
    ]
    (over,), (dots,) = (figure.data for _, figure in figures)
    assert list(dots.x) == sorted(dots.x) and len(dots.x) == len({row.arm for row in rows})
    assert dots.y[-1] == "lora-r16, 221,184" and "linear-open-r1, 13,848" in dots.y
    # as many colours as there are groups of like numbers, each of them with one name in the other figure
    assert len(set(dots.marker.color)) == sum(name != "" for name in over.text) == 7


def test_blocks_are_the_first_ones_and_part_of_what_a_cell_is_known_by(tiny_encoder):
    for model, name in ((tiny_bert(), "bert.encoder.layer"), (tiny_llama(), "model.layers")):
        assert blocks_of(model) == name
        first, ids = model.get_submodule(f"{name}.0"), torch.tensor([[3, 4, 5]])
        before = model(ids).logits
        keep_blocks(model, 2)
        assert torch.equal(model(ids).logits, before)
        keep_blocks(model, 1)
        assert [*model.get_submodule(name)] == [first]
        assert model.config.num_hidden_layers == 1
        assert not torch.equal(model(ids).logits, before)
        with pytest.raises(InputError, match=r"blocks asks for the first 2 blocks of \w+, which has 1"):
            keep_blocks(model, 2)
    shared = torch.nn.Module()
    shared.config = tiny_bert().config  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputError, match="needs one list of its 2 blocks, and has none; leave blocks out"):
        keep_blocks(shared, 1)
    study = facts_study(tiny_encoder, blocks=3)
    cell = final_cells(study, digests_of(study), LORA, study.tasks[0], 1e-3)[0]
    row = Bench(study).run(cell)
    assert (row.status, "asks for the first 3 blocks" in row.reason) == ("failed", True)
    digests = digests_of(study)
    prints = {
        cell_of(dataclasses.replace(study, blocks=n), digests, LORA, study.tasks[0], "final", 1e-3, 0).fingerprint
        for n in (None, 1, 2)
    }
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"facts": 0}, "facts must be at least 1, got 0"),
        ({"values": 1}, "values must be at least 2, got 1"),
        ({"facts": None}, "needs facts, how many; or data, a file of pairs"),
        ({"question_column": "q", "data": "f.jsonl"}, "needs both question_column and answer_column"),
        ({"question_column": "q", "answer_column": "a"}, "names columns of pairs, and no data that has them"),
        ({"data": "f.jsonl"}, "name their question_column and answer_column"),
        ({"data": "f.jsonl", "question_column": "q", "answer_column": "a", "values": 4}, "values is of drawn facts"),
        ({"pattern": "{answer} {question}"}, "pattern needs {question} once and {answer} once behind it"),
        ({"commonsense": ("obqa",)}, "commonsense has no meaning for task 'held' of kind facts"),
        ({"label_column": "score"}, "label_column has no meaning for task 'held' of kind facts"),
        ({"validation_rows": 5}, "validation_rows has no meaning for task 'held' of kind facts"),
        ({"kind": "causal"}, "facts is of tasks of kind facts; give task 'held' kind: facts"),
        ({"kind": None, "facts": None, "forgetting": 3}, "forgetting is of tasks of kind facts"),
    ],
)
def test_what_does_not_go_with_facts_is_refused(fields, said):
    with pytest.raises(InputError) as caught:
        Task(**{"name": "held", "kind": "facts", "facts": 10, **fields})
    assert said in str(caught.value)


def test_what_does_not_go_with_the_model_is_refused(tiny_encoder, tiny_decoder, tmp_path):
    with pytest.raises(InputError, match=r"modules_to_save \(classifier\) would hold facts beside the adapter"):
        facts_study(tiny_encoder, modules_to_save=("classifier",))
    for model, task, said in (
        (tiny_encoder, pairs_of(pairs_file(tmp_path)), "takes a causal model"),
        (tiny_encoder, {"forgetting": 2}, "forgetting takes a causal model"),
        (tiny_encoder, {"pattern": "{question}: {answer}"}, "pattern takes a causal model"),
        (tiny_decoder, {"pooling": "mean"}, "pooling is of encoders"),
        (tiny_decoder, pairs_of(pairs_file(tmp_path), facts=7), "fewer than the 7 facts"),
    ):
        with pytest.raises(InputError, match=said):
            digests_of(facts_study(model, task=task))


def test_a_study_file_of_facts(tmp_path):
    file = tmp_path / "study.yaml"
    text = "study: held\nlearning_rates: [1e-3]\nseeds: [0]\nblocks: 2\nwiden: 1\n"
    text += "tasks:\n  - {name: d, kind: facts, TASK}\narms:\n  - {name: lora, method: lora}\n"
    file.write_text(text.replace("TASK", "facts: 50, values: 8"))
    study = read_study(file)
    assert (study.blocks, study.widen, study.tasks[0].facts, study.tasks[0].values) == (2, 1, 50, 8)
    for bad, said in (
        ("facts: ten", "line 7: 'facts' of task 'd' must be a whole number"),
        ("fact: 1", "did you mean"),
    ):
        file.write_text(text.replace("TASK", bad))
        with pytest.raises(InputError, match=said):
            read_study(file)
    file.write_text(text.replace("TASK", "facts: 50").replace("blocks: 2", "blocks: 0"))
    with pytest.raises(InputError, match="blocks must be at least 1, got 0"):
        read_study(file)


def test_real_pairs_are_read(tiny_decoder):
    file = BENCHMARK_DATA / "facts" / "eng_deu_50k.jsonl.gz"
    if not file.exists():
        pytest.skip(f"{file} is not part of the project")
    study = facts_study(tiny_decoder, task=pairs_of(file, facts=1000))
    rows = load_facts(study, study.tasks[0]).train
    assert len(rows) == len(set(rows["prompt"])) == 1000
    assert rows[0] == {"text": "waldorf salad = Waldorfsalat", "prompt": "waldorf salad = "}
