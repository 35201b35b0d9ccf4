"""A row as text, and which of it is learned: what a model sees in training is what it sees when it answers."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from lrlora.errors import InputError
from lrlora.internals import rendered_with_answers, training_template

_HEADINGS = {"system": "System", "developer": "System", "user": "Instruction", "assistant": "Response"}

_ANSWER = {"role": "assistant", "content": "Yes.", "weight": 1}
"""Stands for the answer where only what is before or behind it is looked for."""


class Rendered(NamedTuple):
    """A row as text.

    Args:
        text: all of it.
        spans: of characters that are learned, (first, one past the last), in order.
        behind: characters right before the last span that are the same in every row, such as the mark of an answer.
        adds_special_tokens: whether the tokenizer puts its own around it; a chat template has written them.
    """

    text: str
    spans: list[tuple[int, int]]
    behind: int
    adds_special_tokens: bool


class Renderer:
    """Writes rows as text for one tokenizer.

    Of chats the answers of the assistant are learned, each to the end of its turn. Where they are is found by rendering
    the chat up to every answer, with the mark of an answer at its end: that text must begin the whole one. If a
    template changes earlier turns when others follow, trl's version of it for training is taken, if trl is installed
    and has one, or what the template marks as an answer; else only the last answer of every row is learned, which
    `said` tells.

    Args:
        tokenizer: of the model.
        is_chat: write chats and instructions with the tokenizer's chat template; else with plain headings.

    Example:
        Renderer(tokenizer, is_chat=True).of({"instruction": "Say hello.", "input": "", "answer": "Hello!"}).text
    """

    def __init__(self, tokenizer: Any, is_chat: bool) -> None:
        self._tokenizer, self._is_chat = tokenizer, is_chat
        self._template: str | None = None
        self._only_last = 0

    def of(self, row: dict[str, Any]) -> Rendered:
        """A row of any of the shapes of `lrlora.data.formats.rows_of`.

        Raises:
            InputError: a chat that the template cannot write, or whose tools it drops.
        """
        if "text" in row:
            text = self._ended(row["text"])
            return Rendered(text, [(0, len(text))], 0, True)
        if "prompt" in row:
            text = self._ended(row["prompt"] + row["completion"])
            return Rendered(text, [(len(row["prompt"]), len(text))], 0, True)
        if "messages" in row:
            tools = json.loads(row["tools"]) if row.get("tools") else None
            return self._chat(json.loads(row["messages"]), tools)
        asked = [{"role": "user", "content": request_text(row["instruction"], row["input"]), "weight": 0}]
        return self._chat([*asked, {"role": "assistant", "content": row["answer"], "weight": 1}], None)

    def prompt(self, request: str) -> str:
        """The text before the answer to a request."""
        return self._write([{"role": "user", "content": request}], None, True)

    def asked(self, row: dict[str, Any]) -> tuple[str, bool]:
        """The text before the answer of a row of `lrlora.data.prompts`, as training has it before a learned answer.

        Returns:
            The text, and whether the tokenizer puts its own special tokens around it.

        Raises:
            InputError: as `of`.
        """
        if "text" in row or "prompt" in row:
            return row["text"] if "text" in row else row["prompt"], True
        if "messages" in row:
            messages, tools = json.loads(row["messages"]), json.loads(row["tools"]) if row.get("tools") else None
            rendered = self._chat([*messages, _ANSWER], tools)
        else:
            rendered = self.of({**row, "answer": _ANSWER["content"]})
        return rendered.text[: rendered.spans[-1][0]], rendered.adds_special_tokens

    def end(self) -> str:
        """What ends an answer in training, such as "<|im_end|>"; "" where nothing does."""
        text = self.of({"instruction": "Is it so?", "input": "", "answer": _ANSWER["content"]})
        first, last = text.spans[-1]
        return text.text[first:last].rpartition(_ANSWER["content"])[2].strip()

    @property
    def said(self) -> list[str]:
        """Lines about how chats were written, for the user."""
        lines = []
        if self._template is not None:
            lines.append("the chat template changes earlier turns when others follow: trl's version of it is used")
        if self._only_last:
            lines.append(
                f"the chat template changes earlier turns when others follow: of {self._only_last} rows only the last "
                "answer is learned"
            )
        return lines

    def _ended(self, text: str) -> str:
        end = self._tokenizer.eos_token or ""
        return text if text.endswith(end) else text + end

    def _chat(self, messages: list[dict[str, Any]], tools: Any) -> Rendered:
        learned = [n for n, each in enumerate(messages) if each["role"] == "assistant" and each["weight"]]
        plain = [{key: each for key, each in message.items() if key != "weight"} for message in messages]
        found = self._spans(plain, learned, tools)
        if found is None and self._takes_trls():
            found = self._spans(plain, learned, tools)
        if found is None:
            found = self._marked(plain, learned, tools)
        if found is None:
            self._only_last += 1
            found = self._spans(plain[: learned[-1] + 1], learned[-1:], tools)
        if found is None:
            raise InputError(
                "its chat template writes a chat differently when an answer follows; pass another template"
            )
        return found

    def _spans(self, messages: list[dict[str, Any]], learned: list[int], tools: Any) -> Rendered | None:
        """The chat, with what is learned of it; None where its beginning changes with what follows."""
        whole = self._write(messages, tools, False)
        self._check_tools(whole, messages, tools)
        spans, behind = [], 0
        for number in learned:
            before = self._write(messages[:number], tools, True) if number else ""
            upto = whole if number == len(messages) - 1 else self._write(messages[: number + 1], tools, False)
            # some templates end the whole chat in a mark of their own
            same = same_beginning(upto, whole)
            end = self._end_of_turn(whole[:same], len(before), same < len(upto))
            if not upto.startswith(before) or same < len(before) or end is None:
                return None
            spans.append((len(before), end))
            if number == len(messages) - 1 and whole[len(before) :].strip() == messages[number]["content"].strip():
                # a template that ends no turn: the model would never learn to end
                whole = whole + (self._tokenizer.eos_token or "")
                spans[-1] = (len(before), len(whole))
            said = messages[number - 1]["content"].strip() if number else ""
            behind = len(before) - (before.rfind(said) + len(said)) if said and said in before else 0
        return Rendered(whole, spans, behind, not self._is_chat)

    def _marked(self, messages: list[dict[str, Any]], learned: list[int], tools: Any) -> Rendered | None:
        """The chat, with what is learned of it as the template itself marks it; None where it does not."""
        template = self._template or self._tokenizer.chat_template
        if not self._is_chat or not isinstance(template, str) or "generation %}" not in template:
            return None
        text, places = rendered_with_answers(self._tokenizer, messages, tools, template)
        answers = [number for number, each in enumerate(messages) if each["role"] == "assistant"]
        if len(places) != len(answers):
            return None
        return Rendered(
            text, [place for number, place in zip(answers, places, strict=True) if number in learned], 0, False
        )

    def _end_of_turn(self, text: str, first: int, needs_mark: bool) -> int | None:
        """Where a turn ends: white space behind the token that ends it is not the model's to write."""
        marks = [] if self._mark is None else list(self._mark.finditer(text, first))
        if marks and (needs_mark or not text[marks[-1].end() :].strip()):
            return marks[-1].end()
        return None if needs_mark else len(text)

    @functools.cached_property
    def _mark(self) -> re.Pattern[str] | None:
        """Any token that the tokenizer finds whole in a text, such as the end of a turn."""
        added = (str(token) for token in self._tokenizer.added_tokens_decoder.values())
        marks = {mark for mark in (*self._tokenizer.all_special_tokens, *added) if mark.strip()}
        return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True)))) if marks else None

    def _write(self, messages: list[dict[str, Any]], tools: Any, asks: bool) -> str:
        if not self._is_chat:
            return self._plain(messages, tools, asks)
        try:
            return self._tokenizer.apply_chat_template(
                messages, tools=tools, add_generation_prompt=asks, tokenize=False, chat_template=self._template
            )
        except Exception as error:  # a template is a program: it raises what it likes
            raise InputError(
                f"the chat template refuses it: {' '.join(str(error).split()) or type(error).__name__}"
            ) from error

    def _plain(self, messages: list[dict[str, Any]], tools: Any, asks: bool) -> str:
        parts = []
        for message in messages:
            if tools or "tool_calls" in message or message["role"] not in _HEADINGS:
                raise InputError(
                    "plain headings have no tools; take a base whose chat template has them, and leave --template out"
                )
            is_answer = message["role"] == "assistant"
            text = self._ended(message["content"]) if is_answer else message["content"]
            parts.append(f"### {_HEADINGS[message['role']]}:\n{text}")
        if asks:
            parts.append(f"### {_HEADINGS['assistant']}:\n")
        return "\n\n".join(parts)

    def _check_tools(self, text: str, messages: list[dict[str, Any]], tools: Any) -> None:
        """Refuse a template that writes no tools, or no calls: they would be missing, and nobody would know."""
        names = [tool["function"]["name"] for tool in tools or []]
        names += [call["function"]["name"] for each in messages for call in each.get("tool_calls", ())]
        if lost := next((name for name in names if name not in text), None):
            raise InputError(
                f"the chat template does not write the tool {lost!r}; take a base whose template knows tools, or write "
                "tools and calls into the messages as text"
            )

    def _takes_trls(self) -> bool:
        """Take trl's version of the template for training, where there is one; once."""
        if not self._is_chat or self._template is not None:
            return False
        self._template = self._trls_template
        return self._template is not None

    @functools.cached_property
    def _trls_template(self) -> str | None:
        return training_template(self._tokenizer)


def request_text(instruction: str, given: str | None) -> str:
    """An instruction of Alpaca and its input, as the message of the user."""
    return instruction + (f"\n\n{given}" if given else "")


def same_beginning(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many characters two texts, or tokens two rows, have in common at their beginning."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
