import json

import pytest

from lrlora import InputError
from lrlora.evaluation.endpoint import KEY, Endpoint, key_of_environment
from tests.evaluation.server import answering

HELLO = [{"role": "user", "content": "Hello!"}]
SECRET = "sk-of-nobody"


def test_a_real_server_answers(judge):
    url, model = judge
    reply = Endpoint(url, model).ask(HELLO, {"temperature": 0, "max_tokens": 16})
    assert (reply.text, reply.finish) == ("[[7]]", "stop")
    assert reply.tokens_in is not None and reply.tokens_in > 5 and reply.tokens_out in (4, 5)
    assert Endpoint(url, model).ask(HELLO, {"temperature": 0, "max_tokens": 1}).finish == "length"
    with pytest.raises(InputError, match=r"refuses: 400 .*pinned to"):
        Endpoint(url, "another").ask(HELLO, {})


def test_a_busy_server_is_asked_again(judge):
    busy = ((429, {"Retry-After": "7"}, "slow down"), (503, {}, ""), (500, {"Retry-After": "Fri, 1 Jan"}, "oops"))
    with answering(*busy, behind=judge[0]) as (url, seen):
        waits, lines = [], []
        endpoint = Endpoint(url, judge[1], SECRET, sleep=waits.append, say=lines.append)
        assert endpoint.ask(HELLO, {"temperature": 0, "max_tokens": 16}).text == "[[7]]"
    assert waits == [7.0, 2.0, 4.0]
    assert "429" in lines[0] and "slow down; next try in 7 s" in lines[0] and "503" in lines[1]
    assert [headers["Authorization"] for headers in seen] == [f"Bearer {SECRET}"] * 4


def test_it_gives_up_after_six_tries_and_when_the_wait_is_too_long():
    waits: list[float] = []
    with answering(*[(500, {}, "down")] * 6) as (url, seen):
        with pytest.raises(InputError, match=r"no answer in 6 tries \(500 .*down\); try again later"):
            Endpoint(url, "m", sleep=waits.append).ask(HELLO, {})
        assert len(seen) == 6 and waits == [1.0, 2.0, 4.0, 8.0, 16.0]
    with answering((429, {"Retry-After": "3600"}, "")) as (url, seen):
        with pytest.raises(InputError, match=r"1 tries .*asks to wait 3600 s"):
            Endpoint(url, "m", sleep=waits.append).ask(HELLO, {})
    # nobody listens there any more
    with pytest.raises(InputError, match=r"no answer in 6 tries .*refused"):
        Endpoint(url, "m", sleep=waits.append).ask(HELLO, {})


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((401, {}, f"Incorrect API key: {SECRET}"), rf"401 .*Incorrect API key: \*\*\*.*read from {KEY}"),
        ((404, {}, ""), "404 .*is the URL that of the version"),
        ((400, {}, "bad"), "refuses: 400 .*bad"),
        ((307, {"Location": "http://127.0.0.1:9/"}, ""), "307 .*redirects are not followed"),
        ((302, {"Location": "http://127.0.0.1:9/"}, ""), "302 .*redirects are not followed"),
        ((200, {}, f"<html>{SECRET}"), r"answers with no chat completion: .*<html>\*\*\*"),
        ((200, {}, "{}"), "answers with no chat completion"),
        ((200, {}, json.dumps({"choices": [{"message": None}]})), "answers with no chat completion"),
    ],
)
def test_what_is_no_answer_is_refused_once_and_without_the_key(reply, said):
    with answering(reply) as (url, seen):
        with pytest.raises(InputError, match=said) as error:
            Endpoint(url, "m", SECRET, sleep=lambda s: pytest.fail("waited")).ask(HELLO, {})
    assert len(seen) == 1 and SECRET not in str(error.value) and SECRET not in repr(Endpoint(url, "m", SECRET))


def test_a_reply_may_lack_all_but_its_message():
    content = json.dumps({"choices": [{"message": {"content": None}}]})
    with answering((200, {}, content)) as (url, seen):
        reply = Endpoint(url, "m").ask(HELLO, {})
    assert (reply.text, reply.finish, reply.tokens_in, reply.tokens_out, reply.served) == ("", None, None, None, None)
    assert "Authorization" not in seen[0]


def test_addresses_and_keys_that_cannot_work_are_refused(monkeypatch):
    for url, said in (
        ("localhost:8000/v1", "needed the URL of a server"),
        ("ftp://host/v1", "needed the URL of a server"),
        ("http://me:word@host/v1", f"must hold no user, password or query; put the key into {KEY}"),
        ("http://host/v1?key=1", "must hold no user, password or query"),
    ):
        with pytest.raises(InputError, match=said):
            Endpoint(url, "m")
    with pytest.raises(InputError, match="above 0 seconds, got 0"):
        Endpoint("http://host/v1", "m", timeout_s=0)
    monkeypatch.delenv(KEY, raising=False)
    assert key_of_environment() is None
    monkeypatch.setenv(KEY, f" {SECRET}\n")
    assert key_of_environment() == SECRET
    monkeypatch.setenv(KEY, "two words")
    with pytest.raises(InputError, match=f"{KEY} must hold an API key without spaces"):
        key_of_environment()
