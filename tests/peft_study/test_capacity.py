"""How much an adapter holds: bits, exact recall, and what is forgotten for it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lrlora import InputError
from peft_study import run_study
from peft_study.answers import summary_lines
from peft_study.capacity import score_facts
from peft_study.cell import Bench
from peft_study.facts import encode_facts, load_facts
from peft_study.kinds import load_parts
from peft_study.plan import chosen_rate, digests_of
from peft_study.spec import Training
from peft_study.summary import summary
from tests.peft_study.conftest import ALONE, a_row
from tests.peft_study.small_facts import LORA, OPEN, facts_study, pairs_file, pairs_of, run_one


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
    assert all(abs(row.metrics["unrelated_nats_after"] - next(iter(before))) > 1e-5 for row in rows)
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
