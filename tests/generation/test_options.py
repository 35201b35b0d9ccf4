import pytest
from transformers import GenerationConfig

from lrlora import InputError
from lrlora.generation.options import generation_config, generation_fields, names_of_arguments, reads_prompt, why_not


def test_every_argument_of_transformers_is_passed_on_or_has_a_reason():
    all_of_them = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert {name for name in all_of_them if why_not(name) is None} == set(names_of_arguments())
    assert {"max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "num_beams"} < set(names_of_arguments())


def test_types_are_those_of_transformers():
    types = {field.name: field.type for field in generation_fields()}
    assert types["max_new_tokens"] == int | None and types["temperature"] == float | None
    assert types["do_sample"] is bool and types["stop_strings"] == list[str] | None


def test_it_is_greedy_unless_told_otherwise():
    assert generation_config({}).do_sample is False
    assert generation_config({"do_sample": True, "top_p": 0.9}).top_p == 0.9


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"temperature": 0.5}, "do_sample"),
        ({"num_beams": 1, "length_penalty": 2.0}, "num_beams"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"temprature": 0.5}, "did you mean temperature"),
        ({"max_length": 5}, "counts the prompt"),
        ({"eos_token_id": 5}, "stop_strings"),
    ],
)
def test_what_has_no_effect_or_cannot_be_chosen_is_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        generation_config(arguments)


def test_settings_that_look_at_the_prompt_are_known():
    assert not reads_prompt(generation_config({}))
    assert reads_prompt(generation_config({"repetition_penalty": 1.2}))
