import socket

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lrlora
from lrlora import InputError
from lrlora.data.commonsense import COMMONSENSE, instruction_of, load_commonsense
from lrlora.data.encode import encode_row, prompt_text, uses_chat
from lrlora.data.render import Renderer
from lrlora.evaluation.commonsense import Suite, score_commonsense
from lrlora.evaluation.generation import answer_in, generate_answers
from lrlora.evaluation.likelihood import score_likelihood
from lrlora.evaluation.questions import ask
from tests.conftest import BENCHMARK_DATA, disturb

REAL = BENCHMARK_DATA / "commonsense"
QUESTIONS = {
    "boolq": [("is rain wet?", ["false", "true"], 1), ("is the sun cold and dark?", ["false", "true"], 0)],
    "piqa": [("cool soup", ["blow on it", "set it on fire again"], 0), ("open a door", ["eat it", "turn the key"], 1)],
    "siqa": [("Jo ran home. Why?", ["to sleep", "for no reason at all", "rain"], 2)],
    "hellaswag": [("Rowing: [header] A man [title] sits", ["in a boat [step] now", "up", "on air", "under it"], 0)],
    "winogrande": [("Jo thanked Al because _ was kind.", ["Jo", "Al"], 1), ("The _ is in the bag.", ["pen", "sea"], 0)],
    "arc_e": [("What is hot?", ["ice", "the sun in summer", "snow"], 1), ("What flies?", [*"abcd", "a bird"], 4)],
    "arc_c": [("What is wet?", ["dust", "sand", "water from the sea"], 2)],
    "obqa": [("The sun is", ["hot", "cold", "wet", "a sad place"], 0), ("Ice is", ["hot", "cold", "tea", "air"], 1)],
}


def rows_of(task: str) -> list[dict]:
    """A few rows as load_commonsense returns them."""
    rows = []
    for question, choices, label in QUESTIONS[task]:
        answer = COMMONSENSE[task].answers(len(choices))[label]
        row = {"task": task, "question": question, "choices": choices, "label": label, "answer": answer}
        rows.append(
            {**row, "instruction": instruction_of(task, question, choices), "output": f"the correct answer is {answer}"}
        )
    return rows


def by_hand(model, tokenizer, context: str, continuation: str) -> float:
    """Log-likelihood of a continuation, one sequence at a time, no padding, no library."""
    trimmed = context.rstrip()
    before = tokenizer(trimmed)["input_ids"]
    ids = tokenizer(trimmed + context[len(trimmed) :] + continuation)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(logits[i - 1, ids[i]].item() for i in range(len(before), len(ids)))


def all_by_hand(model, tokenizer, task: str, rows: list[dict], prompt: str) -> list[list[float]]:
    """What score_likelihood should find."""
    found = []
    for row in rows:
        if prompt == "question":
            asked = ask(task, row)
            pairs = [(c, " " + t) for c, t in zip(asked.contexts, asked.continuations, strict=True)]
        else:
            context = prompt_text(row["instruction"], tokenizer, uses_chat(tokenizer, "auto"))
            answers = COMMONSENSE[task].answers(len(row["choices"]))
            pairs = [(context, f"the correct answer is {answer}") for answer in answers]
        found.append([by_hand(model, tokenizer, *pair) for pair in pairs])
    return found


def assert_same(found: list[list[float]], truth: list[list[float]]) -> None:
    """To 1e-4, absolute and relative."""
    assert [len(row) for row in found] == [len(row) for row in truth]
    for row, true in zip(found, truth, strict=True):
        torch.testing.assert_close(torch.tensor(row), torch.tensor(true), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def tiny(tiny_decoder):
    """A random Llama with an LR-LoRA adapter that is not zero, and its tokenizer."""
    # BERT's tokenizer would put its end token between context and continuation
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    tokenizer._tokenizer.post_processor = None
    base = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    model = peft.get_peft_model(
        base, lrlora.LRLoraConfig(r=2, tau=2.0, task_type="CAUSAL_LM", target_modules="all-linear")
    )
    disturb(model)
    for _, _, _, delta in lrlora.tuner.deltas(model, None):
        # far enough that a scoring without the adapter would be seen
        delta.B.data.mul_(20)
    return model.eval(), tokenizer


@pytest.mark.parametrize("prompt", ["question", "instruction"])
@pytest.mark.parametrize("task", list(QUESTIONS))
def test_likelihoods_are_those_computed_by_hand(tiny, task, prompt):
    model, tokenizer = tiny
    rows = rows_of(task)
    truth = all_by_hand(model, tokenizer, task, rows, prompt)
    best = [max(range(len(row)), key=row.__getitem__) for row in truth]
    acc = sum(b == row["label"] for b, row in zip(best, rows, strict=True)) / len(rows)
    for batch_size in (1, 3):
        scores = score_likelihood(model, tokenizer, task, rows, batch_size, prompt)
        assert_same(scores.log_likelihoods, truth)
        assert scores.predictions == best
        assert scores.acc == pytest.approx(acc)
        surprises = [torch.tensor(t).log_softmax(0)[row["label"]] for t, row in zip(truth, rows, strict=True)]
        assert scores.choice_loss == pytest.approx(-float(torch.stack(surprises).mean()), abs=1e-4)
    has_norm = prompt == "question" and task in ("piqa", "hellaswag", "arc_e", "arc_c", "obqa")
    assert (scores.acc_norm is not None) == has_norm
    if has_norm:
        lengths = [[len(choice) for choice in ask(task, row).continuations] for row in rows]
        normed = [
            [v / n for v, n in zip(v_row, n_row, strict=True)] for v_row, n_row in zip(truth, lengths, strict=True)
        ]
        right = [row.index(max(row)) == r["label"] for row, r in zip(normed, rows, strict=True)]
        assert scores.acc_norm == pytest.approx(sum(right) / len(rows))


def test_the_adapter_counts(tiny):
    model, tokenizer = tiny
    with model.disable_adapter():
        without = score_likelihood(model, tokenizer, "obqa", rows_of("obqa")).log_likelihoods
    adapted = score_likelihood(model, tokenizer, "obqa", rows_of("obqa")).log_likelihoods
    assert max(abs(a - b) for a, b in zip(adapted[0], without[0], strict=True)) > 1e-2


def test_nothing_is_asked_of_the_network(tiny, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert 0 <= score_commonsense(*tiny, "piqa", rows_of("piqa"))["acc"] <= 1
    assert 0 <= score_commonsense(*tiny, "piqa", rows_of("piqa"), "generation")["acc"] <= 1


@pytest.mark.parametrize("how", ["likelihood", "generation"])
def test_the_model_is_left_as_it_was(tiny, how):
    model, tokenizer = tiny
    model.train()
    state, side, pad = torch.get_rng_state(), tokenizer.padding_side, tokenizer.pad_token
    first = score_commonsense(model, tokenizer, "arc_e", rows_of("arc_e"), how)
    assert first == score_commonsense(model, tokenizer, "arc_e", rows_of("arc_e"), how)
    assert model.training
    model.eval()
    assert torch.equal(torch.get_rng_state(), state)
    assert (tokenizer.padding_side, tokenizer.pad_token) == (side, pad)


@pytest.mark.parametrize("is_bf16", [False, True])
@pytest.mark.parametrize("how", ["likelihood", "generation"])
def test_a_model_computes_in_the_precision_that_is_asked_for(tiny, how, is_bf16):
    model, tokenizer = tiny
    seen = set()
    hook = model.get_base_model().model.register_forward_pre_hook(lambda *_: seen.add(torch.is_autocast_enabled("cpu")))
    suite = Suite({"obqa": rows_of("obqa")}, how, is_bf16=is_bf16)
    found = suite.score(model, tokenizer)
    hook.remove()
    assert (suite.task, suite.kind, suite.count, seen) == ("obqa", "causal", 2, {is_bf16})
    assert found[suite.metric] == found["obqa acc"]


@pytest.mark.parametrize(
    ("task", "text", "answer"),
    [
        ("boolq", "the correct answer is true", "true"),
        ("boolq", "True, not false", "false"),
        ("arc_c", "answer5 or answer1", "answer5"),
        ("siqa", "Answer1", None),
        ("piqa", "the solution is solution2.", "solution2"),
        ("hellaswag", "ending", None),
        ("winogrande", "option1/option2", "option1"),
        ("winogrande", "", None),
    ],
)
def test_the_first_answer_word_counts(task, text, answer):
    assert answer_in(task, text) == answer


def test_a_model_that_has_learned_the_answers_scores_them(tiny_decoder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    tokenizer._tokenizer.post_processor = None
    model = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    rows = rows_of("obqa") + [{**row, "question": "x"} for row in rows_of("obqa")]
    assert {row["label"] for row in rows} == {0, 1}
    made = [{**r, "input": "", "answer": r["output"]} for r in rows[:2]]
    pieces = [encode_row(r, Renderer(tokenizer, False), tokenizer, 128).pieces[0] for r in made]
    batch = [{"input_ids": ids, "labels": labels} for ids, labels in pieces]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        for one in batch:
            model(**{name: torch.tensor([values]) for name, values in one.items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    for batch_size in (1, 4):
        generated = score_commonsense(model, tokenizer, "obqa", rows[:2], "generation", batch_size=batch_size)
        assert generated == {"acc": 1.0, "answered": 1.0, "rows": 2}
    assert score_commonsense(model, tokenizer, "obqa", rows[:2], prompt="instruction")["acc"] == 1.0
    assert generate_answers(model, tokenizer, "obqa", rows[:2]) == [row["output"] for row in rows[:2]]
    wrong = [{**row, "label": 3, "answer": "answer4"} for row in rows[:2]]
    assert score_commonsense(model, tokenizer, "obqa", wrong, "generation")["acc"] == 0.0
    assert score_commonsense(model, tokenizer, "obqa", wrong, prompt="instruction")["acc"] == 0.0


def test_the_size_of_a_batch_does_not_change_what_is_written(tiny, tiny_decoder):
    model = AutoModelForCausalLM.from_pretrained(tiny_decoder).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            # as they are initialised, the blocks hardly change what they read
            for linear in (m for m in layer.modules() if isinstance(m, torch.nn.Linear)):
                linear.weight.mul_(15)
    rows = rows_of("arc_e") + rows_of("arc_c") + rows_of("obqa")
    written = [generate_answers(model, tiny[1], "arc_e", rows, size, max_new_tokens=8) for size in (1, 2, 5)]
    assert written[0] == written[1] == written[2]
    assert len(set(written[0])) > 1


def test_what_cannot_be_scored_is_refused(tiny):
    rows = rows_of("obqa")
    for arguments, words in (
        (("rte", rows), "no commonsense task 'rte'; there are: boolq"),
        (("obqa", []), "no rows of obqa"),
        (("arc_c", rows), "rows of obqa among those of arc_c"),
        (("obqa", rows, "guess"), "how must be 'likelihood' or 'generation', got 'guess'"),
    ):
        with pytest.raises(InputError, match=words):
            score_commonsense(*tiny, *arguments)
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        score_commonsense(*tiny, "obqa", rows, batch_size=0)
    with pytest.raises(InputError, match="prompt must be"):
        score_commonsense(*tiny, "obqa", rows, prompt="answer")  # pyright: ignore[reportArgumentType]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the real data in {REAL}")
def test_real_rows_on_the_real_model(embedded_decoder):
    model = AutoModelForCausalLM.from_pretrained(embedded_decoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(embedded_decoder)
    for task, count, prompt in (("arc_c", 6, "question"), ("winogrande", 8, "question"), ("boolq", 5, "instruction")):
        rows = load_commonsense(REAL, task, rows=count)
        truth = all_by_hand(model, tokenizer, task, rows, prompt)
        scores = score_likelihood(model, tokenizer, task, rows, 4, prompt)
        assert_same(scores.log_likelihoods, truth)
    assert_same(score_likelihood(model, tokenizer, task, rows, 1, prompt).log_likelihoods, truth)
    # a question that any model that works can answer, among choices of one length
    easy = {"task": "obqa", "question": "The capital city of France is called", "label": 2}
    easy = {**easy, "choices": ["banana", "Moscow", "Paris", "Sunday"]}
    assert score_likelihood(model, tokenizer, "obqa", [easy]).predictions == [2]
