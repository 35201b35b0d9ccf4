"""Facts to be memorised: which they are, how they are written, and what is refused."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from lrlora import InputError
from lrlora.data.facts import MOST_VALUES, drawn_facts, encode_recalled, read_facts, written
from lrlora.data.source import DataSource
from peft_study.facts import load_facts
from peft_study.kinds import load_parts
from peft_study.plan import digests_of, final_cells, search_cells
from tests.conftest import BENCHMARK_DATA, write_rows
from tests.peft_study.small_facts import LORA, OPEN, facts_study, pairs_file, pairs_of


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
    facts = read_facts(DataSource(str(pairs_file(tmp_path))), "english", "german", 3, draw_seed=None)
    assert facts.questions == ["thing 0", "thing 1", "thing 2"]
    assert facts.answers == ["ding 0", "ding 1", "ding 4"]
    assert [note.split(": ")[1] for note in facts.notes] == [
        "1 of the first 4 rows repeat a question and were dropped; the first answer of each was kept"
    ]
    assert read_facts(DataSource(str(tmp_path / "pairs.jsonl")), "english", "german", 2, draw_seed=None).notes == ()
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


def test_pairs_drawn_from_all_of_a_sorted_file(tmp_path):
    rows = [{"city": f"city {number}", "country": f"{number // 50}"} for number in range(1000)]
    source = DataSource(str(write_rows(tmp_path / "cities.jsonl", rows)))
    first = read_facts(source, "city", "country", 100, draw_seed=None)
    assert first.questions == [row["city"] for row in rows[:100]]
    assert [note.split("cities.jsonl ")[1] for note in first.notes] == [
        "seems to be sorted: its first 100 pairs have 2 different answers, as many drawn from all of it 20; draw "
        "them, with a draw_seed that is a number"
    ]
    drawn = read_facts(source, "city", "country", 100)
    assert drawn.notes == () and drawn.source.endswith("100 pairs drawn, seed 0")
    assert len(set(drawn.questions)) == 100 and len(set(drawn.answers)) == 20
    assert all(f"{int(q.split()[1]) // 50}" == a for q, a in zip(drawn.questions, drawn.answers, strict=True))
    assert read_facts(source, "city", "country", 40, draw_seed=0).questions == drawn.questions[:40]
    assert read_facts(source, "city", "country", 100, draw_seed=1).questions != drawn.questions
    assert read_facts(source, "city", "country").questions == [row["city"] for row in rows]


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


def test_what_does_not_go_with_the_model_is_refused(tiny_encoder, tiny_decoder, tmp_path):
    with pytest.raises(InputError, match=r"modules_to_save \(classifier\) would hold facts as well"):
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


def test_real_pairs_are_read(tiny_decoder):
    file = BENCHMARK_DATA / "facts" / "eng_deu_50k.jsonl.gz"
    if not file.exists():
        pytest.skip(f"{file} is not part of the project")
    study = facts_study(tiny_decoder, task=pairs_of(file, facts=1000, draw_seed=None))
    rows = load_facts(study, study.tasks[0]).train
    assert len(rows) == len(set(rows["prompt"])) == 1000
    assert rows[0] == {"text": "waldorf salad = Waldorfsalat", "prompt": "waldorf salad = "}
