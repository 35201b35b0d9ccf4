"""Answers of a model to questions of two turns, into a file of FastChat's format that a killed process goes on with.

Questions are answered one at a time, as in FastChat, and every turn has a seed of its own: an answer depends on its
question, the model and the settings, and neither on the other questions nor on where a process was killed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import set_seed

from lrlora.data.encode import Say
from lrlora.data.mt_bench import Question, turns_of
from lrlora.errors import InputError
from lrlora.generation.chat import row_of
from lrlora.generation.model import LanguageModel, Origin
from lrlora.generation.options import generation_config
from lrlora.saved.part import Record, check_out, resumable

MAX_NEW_TOKENS = 1024
"""FastChat's."""
_TOP_K = 50
"""Most likely tokens that a sampled one is among: transformers' default, which FastChat leaves as it is."""
_SAY_EVERY_S = 10.0
_MADE = "generation"
"""Field of a record that says how it was made; FastChat's own programs do not read it."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the answers besides the questions.

    Args:
        model: of `LanguageModel.source`.
        template: how requests are written.
        bf16: compute in bfloat16.
        max_new_tokens: of an answer; fewer where the model has no room for them.
        seed: of what is sampled.
    """

    model: str
    template: str
    bf16: bool
    max_new_tokens: int = MAX_NEW_TOKENS
    seed: int = 0

    @classmethod
    def of(cls, origin: Origin, max_new_tokens: int, seed: int) -> Settings:
        """The settings with a model that need not be loaded.

        Raises:
            InputError: max_new_tokens below 1.
        """
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        return cls(origin.source, origin.template, origin.is_bf16, max_new_tokens, seed)


def answer_questions(
    out: Path,
    model: LanguageModel,
    model_id: str,
    questions: Sequence[Question],
    settings: Settings,
    overwrite: bool = False,
    say: Say = lambda line: None,
) -> list[Record]:
    """Answer both turns of every question; the second prompt holds the first answer.

    Category by category the temperature is FastChat's; at 0 the most likely token is taken.

    Args:
        out: the file; until all are answered they are in `.NAME.part` next to it, and the same call goes on from there.
        model: as `lrlora.generation.model.load` returns it.
        model_id: the name of the model in the file.
        questions: of `lrlora.data.mt_bench.read_questions`.
        settings: with this model.
        overwrite: replace a file that is there, and begin anew where answers of other settings are.
        say: gets a line about the progress, and about answers that were cut.

    Returns:
        FastChat's records in the order of the questions: question_id, answer_id, model_id, choices with both turns,
        tstamp (seconds since 1970); and "generation": the settings, and "finish" and "tokens" as in `Answer`, by turn.
        Two records are equal if all but tstamp is. answer_id is a digest of question, settings and answer without the
        files of the model: the same for the same text from the same weights elsewhere.

    Raises:
        InputError: a model without a chat template, questions that may not fit into it, or as `resumable`.
    """
    out = out.expanduser()
    check_out(out, overwrite)
    _check_chat(model)
    _check_room(model, questions, settings.max_new_tokens)
    asked = hashlib.sha256(json.dumps([[q.number, q.category, q.turns] for q in questions]).encode()).hexdigest()[:16]
    with resumable(out, {**dataclasses.asdict(settings), "model_id": model_id, "questions": asked}, overwrite) as part:
        found = {record["question_id"]: record for record in part.done}
        if found:
            say(f"{out}: {len(found)} of {len(questions)} questions were answered before; the others are now")
        began = said = time.monotonic()
        for question in questions:
            if question.number in found:
                continue
            found[question.number] = _answered(model, model_id, question, settings)
            part.keep(found[question.number])
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                say(f"{len(found)} of {len(questions)} questions answered after {said - began:.0f} s")
        records = [found[question.number] for question in questions]
        part.finish(records)
    if cut := [r["question_id"] for r in records if "length" in r[_MADE]["finish"]]:
        say(f"{len(cut)} of {len(records)} questions have an answer cut at its largest length: {_listed(cut)}")
    return records


def check_answers(path: Path, records: Sequence[Record], questions: Sequence[Question], settings: Settings) -> None:
    """Refuse answers that are there and that these settings would not give.

    Args:
        path: of the answers, for errors.
        records: of `lrlora.data.mt_bench.read_answers`, one of every question.
        questions: that were asked.
        settings: of now.

    Raises:
        InputError: made by another program, from another model or with other settings, or changed since.
    """
    advice = "pass another --out, --overwrite to generate anew, or --judge_only to judge them as they are"
    for question, record in zip(questions, records, strict=True):
        made = record.get(_MADE)
        if not isinstance(made, dict):
            raise InputError(f"{path}: question {question.number} does not say how it was answered; {advice}")
        now = dataclasses.asdict(settings)
        if changed := [name for name, value in now.items() if made.get(name) != value]:
            named = ["the files of the model" if name == "model" else name for name in changed]
            raise InputError(f"{path} was made with other settings ({', '.join(named)}); {advice}")
        if record.get("answer_id") != _answer_id(record["model_id"], question, settings, turns_of(record)):
            raise InputError(f"{path}: question {question.number} or its answer was changed since; {advice}")


def _check_chat(model: LanguageModel) -> None:
    if not model.is_chat:
        raise InputError(
            "MT-Bench has a second turn after the first answer, and this model's tokenizer has no chat template, or it "
            "is not used (template plain): take a run that was trained on chats, or a base that was (Instruct); or "
            "put a chat_template.jinja into the model's folder and pass --template chat"
        )


def _check_room(model: LanguageModel, questions: Sequence[Question], max_new_tokens: int) -> None:
    """Refuse, before any work, questions whose second prompt might not fit behind a first answer of full length."""
    longest, number = 0, questions[0].number
    for question in questions:
        first, second = (_user(turn) for turn in question.turns)
        try:
            length = len(model.prompt(row_of([first, _assistant("."), second]))[1])
        except InputError as error:
            raise InputError(f"question {question.number}: {error}") from error
        if length > longest:
            longest, number = length, question.number
    if (room := model.length - longest - 1) < max_new_tokens:
        needed = f"pass --max_new_tokens {room} or fewer" if room > 0 else "take a model that reads more"
        raise InputError(
            f"question {number}: its two turns have {longest} tokens, and the model reads {model.length}: a first "
            f"answer of {max_new_tokens} leaves no room for the second; {needed}"
        )


def _answered(model: LanguageModel, model_id: str, question: Question, settings: Settings) -> Record:
    said: list[dict[str, str]] = []
    answers = []
    sampled = {"do_sample": True, "temperature": question.temperature, "top_k": _TOP_K}
    for turn, text in enumerate(question.turns, 1):
        said.append(_user(text))
        try:
            _, ids = model.prompt(row_of(said))
        except InputError as error:
            raise InputError(
                f"question {question.number}, turn {turn}: {error}; pass fewer --max_new_tokens"
            ) from error
        room = {"max_new_tokens": min(settings.max_new_tokens, model.length - len(ids))}
        config = generation_config(room if question.temperature == 0 else {**room, **sampled})
        set_seed(_seed(settings.seed, question.number, turn))
        (answer,) = model.generate([ids], config)
        said.append(_assistant(answer.text))
        answers.append(answer)
    texts = [answer.text for answer in answers]
    return {
        "question_id": question.number,
        "answer_id": _answer_id(model_id, question, settings, texts),
        "model_id": model_id,
        "choices": [{"index": 0, "turns": texts}],
        "tstamp": time.time(),
        _MADE: {
            **dataclasses.asdict(settings),
            "temperature": question.temperature,
            "finish": [answer.finish for answer in answers],
            "tokens": [answer.tokens for answer in answers],
        },
    }


def _answer_id(model_id: str, question: Question, settings: Settings, texts: Sequence[str]) -> str:
    how = dataclasses.asdict(settings)
    del how["model"]
    content = [model_id, question.number, question.turns, question.temperature, how, texts]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:22]


def _seed(seed: int, number: int | str, turn: int) -> int:
    # numpy takes 32 bits
    return int.from_bytes(hashlib.sha256(f"{seed} {number} {turn}".encode()).digest()[:4], "big")


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _listed(numbers: Sequence[Any]) -> str:
    return ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
