"""Chat completions over HTTP, as OpenAI's API has them: what a server answers, with retries while it is busy."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

from lrlora.data.encode import Say
from lrlora.data.tables import shortened
from lrlora.errors import InputError

KEY = "LRLORA_JUDGE_KEY"
"""The environment variable with the API key; the key is in no file, no message and no flag."""
_TRIES = 6
_LONGEST_WAIT_S = 60.0
_LONGEST_ASKED_S = 600.0


@dataclass(frozen=True)
class Reply:
    """What a model behind a server answered.

    Args:
        text: "" where it wrote none.
        finish: the server's finish_reason, such as "stop" or "length".
        tokens_in: of the prompt, by the server's count; None where it gives none.
        tokens_out: of the answer.
        served: the model's name in the answer, which may say more than the one that was asked for.
    """

    text: str
    finish: str | None
    tokens_in: int | None
    tokens_out: int | None
    served: str | None


@dataclass(frozen=True)
class Endpoint:
    """A server that has OpenAI's chat completions.

    Args:
        url: up to the version, such as https://api.openai.com/v1.
        model: a name that the server knows.
        key: sent as a bearer token; None sends none.
        timeout_s: of one request.
        sleep: waits between tries.
        say: gets a line about every wait.

    Raises:
        InputError: a URL that is none of http or https, or that holds a password.

    Example:
        Endpoint("http://localhost:8000/v1", "judge").ask([{"role": "user", "content": "Hello!"}], {}).text
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 300.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    say: Say = field(default=lambda line: None, repr=False)

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"needed the URL of a server, such as http://localhost:8000/v1, got {self.url!r}")
        if parts.username or parts.password or parts.query:
            raise InputError(f"the URL must hold no user, password or query; put the key into {KEY} in the environment")
        if self.timeout_s <= 0:
            raise InputError(f"the time-out must be above 0 seconds, got {self.timeout_s}")

    def ask(self, messages: Sequence[Mapping[str, str]], body: Mapping[str, Any]) -> Reply:
        """The answer to messages.

        A busy server (429), one with an error of its own (5xx), no connection and no answer in time are tried again, up
        to six times in all: after 1, 2, 4, ... seconds, or as long as the server's Retry-After says.

        Args:
            messages: "role" and "content" of each.
            body: further fields of the request, such as temperature and max_tokens.

        Raises:
            InputError: a server that refuses, is not there after the last try, or answers with something else.
        """
        sent = json.dumps({"model": self.model, "messages": list(messages), **body}).encode()
        for tried in range(1, _TRIES + 1):
            asked_wait = 0.0
            try:
                return self._reply(self._post(sent))
            except urllib.error.HTTPError as error:
                why = f"{error.code} {error.reason}: {_body_of(error)}"
                if error.code != 429 and error.code < 500:
                    raise InputError(self._without_key(f"{self.url} refuses: {why}{_advice(error.code)}")) from None
                asked_wait = _retry_after(error.headers.get("Retry-After"))
            except (OSError, HTTPException) as error:
                # without its cause, which could hold the request
                why = str(getattr(error, "reason", "") or error) or type(error).__name__
            if tried == _TRIES or asked_wait > _LONGEST_ASKED_S:
                told = f" and asks to wait {asked_wait:.0f} s" if asked_wait > _LONGEST_ASKED_S else ""
                raise InputError(
                    self._without_key(f"{self.url} gave no answer in {tried} tries ({why}){told}; try again later")
                )
            wait = max(asked_wait, min(2.0 ** (tried - 1), _LONGEST_WAIT_S))
            self.say(self._without_key(f"{self.url}: {why}; next try in {wait:.0f} s"))
            self.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _post(self, sent: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", sent, headers, method="POST")
        # a server that sends us elsewhere would get the key sent there
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout_s) as answer:
            return answer.read()

    def _reply(self, answer: bytes) -> Reply:
        try:
            found = json.loads(answer)
            choice, usage = found["choices"][0], found.get("usage") or {}
            # lone surrogates, which JSON may hold, can be in no file
            text = (choice["message"].get("content") or "").encode(errors="replace").decode()
            finish = choice.get("finish_reason")
            tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            said = shortened(answer.decode("utf-8", errors="replace"))
            raise InputError(self._without_key(f"{self.url} answers with no chat completion: {said}")) from None
        return Reply(text, finish, *tokens, found.get("model"))

    def _without_key(self, text: str) -> str:
        """Servers say back what they got."""
        return text.replace(self.key, "***") if self.key else text


def key_of_environment() -> str | None:
    """The API key, None where there is none.

    Raises:
        InputError: one that no header can hold.
    """
    key = os.environ.get(KEY, "").strip()
    if not key.isascii() or not all(each.isprintable() and each != " " for each in key):
        raise InputError(f"{KEY} must hold an API key without spaces or line breaks")
    return key or None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Take it as the error that it is here."""


def _body_of(error: urllib.error.HTTPError) -> str:
    try:
        return shortened(" ".join(error.read(4096).decode("utf-8", errors="replace").split()))
    except (OSError, HTTPException):
        return ""


def _advice(code: int) -> str:
    if code in (401, 403):
        return f"; the API key is read from {KEY} in the environment"
    if code == 404:
        return "; is the URL that of the version, such as http://localhost:8000/v1, and is there such a model?"
    return "; redirects are not followed: pass the URL that it leads to" if code < 400 else ""


def _retry_after(value: str | None) -> float:
    """Seconds; a date, which few servers send, is not read."""
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        return 0.0
