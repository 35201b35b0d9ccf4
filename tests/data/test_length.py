import pytest
import transformers

from lrlora import InputError
from lrlora.data.length import length_of_rows
from tests.conftest import tiny_bert, tiny_llama

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


class Tokenizer:
    """One without a limit of its own, as many decoders have it."""

    model_max_length = int(1e30)


def test_a_row_may_be_as_long_as_the_model_takes():
    assert length_of_rows(None, Tokenizer(), tiny_bert()) == 64
    assert length_of_rows(None, Tokenizer(), tiny_llama()) == 128
    assert length_of_rows(40, Tokenizer(), tiny_bert()) == 40
    short = Tokenizer()
    short.model_max_length = 50
    assert length_of_rows(None, short, tiny_bert()) == 50


def test_positions_that_count_from_behind_the_padding():
    roberta = transformers.RobertaModel(transformers.RobertaConfig(**SMALL, max_position_embeddings=66, pad_token_id=1))
    assert length_of_rows(None, Tokenizer(), roberta) == 64
    gpt2 = transformers.GPT2Model(
        transformers.GPT2Config(vocab_size=64, n_positions=48, n_embd=32, n_layer=1, n_head=2)
    )
    assert length_of_rows(None, Tokenizer(), gpt2) == 48


def test_more_than_the_model_has_is_refused_or_said():
    with pytest.raises(InputError, match="max_length must be at most 64, the positions of this model, got 65"):
        length_of_rows(65, Tokenizer(), tiny_bert())
    said = []
    assert length_of_rows(129, Tokenizer(), tiny_llama(), said.append) == 129
    assert said == ["max_length 129 is above the 128 positions that this model was made for"]
