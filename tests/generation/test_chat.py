import os
import signal

import pytest

from lrlora import InputError
from lrlora.data.prompts import request
from lrlora.generation import generation_config, load
from lrlora.generation.chat import Chat, interruptible


class Reader:
    """Takes the tokens as they are generated, as a streamer of transformers; does something at the third."""

    def __init__(self, act=lambda: None):
        self.act, self.count, self.prompt = act, 0, None

    def put(self, tokens):
        if self.prompt is None:
            self.prompt = tokens.flatten().tolist()
            return
        self.count += 1
        if self.count == 3:
            self.act()

    def end(self):
        pass


@pytest.fixture(scope="module")
def model(embedded_decoder):
    return load(str(embedded_decoder))


def test_history_is_what_the_template_writes(model):
    chat, reader = Chat(model, generation_config({"max_new_tokens": 6}), "Be brief."), Reader()
    said = chat.ask("My name is Ada.")
    chat.ask("What is my name?", reader)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": said.text},
        {"role": "user", "content": "What is my name?"},
    ]
    wanted = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert reader.prompt == wanted
    chat.reset()
    chat.ask("Hi", reader := Reader())
    assert model.tokenizer.decode(reader.prompt).count("<|im_start|>") == 3


def test_a_second_message_without_a_template_is_refused(tiny_decoder):
    model = load(str(tiny_decoder))
    chat = Chat(model, generation_config({"max_new_tokens": 3}))
    first = chat.ask("one")
    (alone,) = model.generate([model.prompt(request("one"))[1]], generation_config({"max_new_tokens": 3}))
    assert first == alone
    with pytest.raises(InputError, match=r"no chat template.* begin a new chat with /reset"):
        chat.ask("two")
    chat.reset()
    assert chat.ask("one") == first


def test_a_chat_that_is_too_long_is_refused_and_kept_as_it_was(tiny_decoder):
    chat = Chat(load(str(tiny_decoder)), generation_config({"max_new_tokens": 3}))
    with pytest.raises(InputError, match=r"the prompt has .* shorten it"):
        chat.ask("word " * 200)
    assert chat.ask("one").tokens <= 3


def test_ctrl_c_ends_the_answer_and_a_second_one_the_program(model):
    chat = Chat(model, generation_config({"max_new_tokens": 40, "min_new_tokens": 40}))
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as stop:
        said = chat.ask("Tell me a story.", Reader(lambda: os.kill(os.getpid(), signal.SIGINT)), stop)
    assert said.finish == "stopped" and said.tokens in (3, 4)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
