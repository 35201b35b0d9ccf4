import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrlora import InputError
from lrlora.cli import main
from lrlora.data.prompts import request
from lrlora.generation import generation_config, load
from tests.generation.cases import ROWS


def answers(model, rows, **arguments):
    prompts = [model.prompt(row)[1] for row in rows]
    return model.generate(prompts, generation_config(arguments))


def test_every_form_of_a_run_answers_as_it_was_trained(run, tmp_path):
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "lora"), "--rank", "32"]) == 0
    for folder in (run, run / "adapter", tmp_path / "merged", tmp_path / "lora"):
        found = answers(load(str(folder)), [request(row["instruction"]) for row in ROWS])
        assert [answer.text for answer in found] == [row["output"] for row in ROWS], folder
        # the end token that was learned, and nothing behind it
        assert [answer.finish for answer in found] == ["end"] * 3
        assert [answer.tokens for answer in found] == [4, 2, 2]
    (said,) = answers(load(str(run)), [request(ROWS[0]["instruction"])], max_new_tokens=2)
    assert (said.text, said.tokens, said.finish) == ("the red", 2, "length")


def test_prompts_together_get_the_answers_that_they_get_alone(embedded_decoder):
    lines: list[str] = []
    model = load("embedded-decoder", say=lines.append)
    assert lines == ["requests are written with the chat template; answers end at '<|im_end|>'"]
    rows = [request("Name a colour."), request("What is the capital of France?"), request("Once upon a", "text")]
    for arguments in ({}, {"num_beams": 2}):
        together = answers(model, rows, max_new_tokens=12, **arguments)
        assert together == [answers(model, [row], max_new_tokens=12, **arguments)[0] for row in rows]
    assert together[1].text == "The capital of France is Paris." and together[1].finish == "end"


def test_the_answer_is_that_of_transformers_alone(embedded_decoder):
    tokenizer = AutoTokenizer.from_pretrained(embedded_decoder)
    plain = AutoModelForCausalLM.from_pretrained(embedded_decoder, dtype=torch.float32)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = plain.generate(**ids, do_sample=False, max_new_tokens=12)
    text = tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answers(load(str(embedded_decoder)), [request(chat[0]["content"])], max_new_tokens=12)[0].text == text


def test_what_the_base_says_of_generation_is_said_and_not_used(tiny_decoder, tmp_path):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_decoder), AutoTokenizer.from_pretrained(tiny_decoder)
    model.generation_config.update(do_sample=True, temperature=1e-3, repetition_penalty=5.0, eos_token_id=[7, 9])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lines: list[str] = []
    changed, plain = load(str(tmp_path), say=lines.append), load(str(tiny_decoder))
    assert "do_sample True, temperature 0.001, repetition_penalty 5.0" in lines[0]
    assert {7, 9} < set(changed.ends) and tokenizer.eos_token_id in changed.ends
    rows = [request("name a fruit")]
    one, other = (answers(model, rows, max_new_tokens=5)[0] for model in (changed, plain))
    assert one.text.startswith(other.text) or other.text.startswith(one.text)


def test_a_prompt_that_leaves_no_room_is_refused(tiny_decoder):
    model = load(str(tiny_decoder))
    assert model.length == 128
    with pytest.raises(InputError, match=r"the prompt has \d+ tokens, and the model reads 128"):
        model.prompt(request("word " * 200))
    with pytest.raises(InputError, match="the prompt is empty"):
        load("embedded-decoder").prompt(request("", "text"))
    ids = model.prompt(request("word " * 90, "text"))[1]
    with pytest.raises(InputError, match=r"leaves room for .* pass max_new_tokens"):
        model.generate([ids], generation_config({"max_new_tokens": 100}))
    assert model.generate([ids], generation_config({}))[0].tokens <= 128 - len(ids)


def test_what_is_no_language_model_is_refused(tiny_encoder, embedded_encoder, run, tmp_path):
    with pytest.raises(InputError, match=r"lacks .* which would be random"):
        load(str(embedded_encoder))
    with pytest.raises(InputError, match="no such model folder"):
        load(str(tmp_path / "none"))
    with pytest.raises(InputError, match="leave --base out"):
        load(str(tiny_encoder), base="roberta-base")
