"""`lrlora evaluate MODEL --mt_bench QUESTIONS`: MT-Bench answers of a model, and what a judge says of them."""

from __future__ import annotations

import dataclasses
import json
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lrlora.cli.settings import given
from lrlora.cli.show import print_table, tell_of_changes
from lrlora.data.embedded import model_folder
from lrlora.data.mt_bench import Question, read_answers, read_questions
from lrlora.errors import InputError
from lrlora.evaluation.endpoint import KEY, Endpoint, key_of_environment
from lrlora.evaluation.judge import MAX_TOKENS, Asked, estimate, judge_answers, requests_of, summary
from lrlora.files import write_json
from lrlora.generation import load
from lrlora.generation.model import origin_of
from lrlora.generation.mt_bench import MAX_NEW_TOKENS, Settings, answer_questions, check_answers
from lrlora.saved.base import BaseOptions
from lrlora.saved.part import Record
from lrlora.training import processes


def _help(text: str) -> dict[str, str]:
    return {"help": f"of --mt_bench: {text}"}


@dataclass(frozen=True)
class MtBenchOptions:
    """Flags of `lrlora evaluate --mt_bench`; None is left out."""

    out: str | None = field(
        default=None, metadata=_help("file of the answers; mt_bench/MODEL_ID.jsonl if left out; judgments lie beside")
    )
    overwrite: bool = field(default=False, metadata=_help("generate anew where --out or a part of it is there"))
    model_id: str | None = field(
        default=None, metadata=_help("name of the model in the files; the last part of MODEL if left out")
    )
    template: Literal["auto", "chat"] | None = field(
        default=None, metadata=_help("as in lrlora train, but for plain; as in the run if left out")
    )
    max_new_tokens: int | None = field(
        default=None, metadata=_help(f"of an answer; FastChat's {MAX_NEW_TOKENS} if left out")
    )
    seed: int | None = field(default=None, metadata=_help("of what is sampled; 0 if left out"))
    dtype: str | None = field(default=None, metadata=_help("as in lrlora train; the run's if left out"))
    quantization: str | None = field(default=None, metadata=_help("as in lrlora train; the run's if left out"))
    device_map: str | None = field(
        default=None, metadata=_help("as in lrlora train; a GPU where there is one if left out")
    )
    revision: str | None = field(default=None, metadata=_help("as in lrlora train; the run's if left out"))
    trust_remote_code: bool = field(
        default=False, metadata=_help("run Python files that come with the base: code of strangers, with your rights")
    )
    judge_url: str | None = field(
        default=None,
        metadata=_help(
            f"server of the judge, OpenAI's chat completions, such as http://localhost:8000/v1; its key in {KEY}"
        ),
    )
    judge_model: str | None = field(default=None, metadata=_help("the judge, as its server names it"))
    judge_only: bool = field(
        default=False, metadata=_help("judge the answers in --out, whoever made them; MODEL is only their name then")
    )
    judge_again: bool = field(default=False, metadata=_help("replace judgments that are there"))
    judge_estimate: bool = field(default=False, metadata=_help("stop before anything is sent, and say how much it is"))
    judge_max_tokens: int | None = field(
        default=None, metadata=_help(f"of a judgment; {MAX_TOKENS} if left out; the temperature is 0")
    )
    judge_body: dict[str, Any] | None = field(
        default=None,
        metadata=_help(
            "further fields of every request; null leaves one out: "
            """'{"max_tokens": null, "max_completion_tokens": 4096, "temperature": null}'"""
        ),
    )
    judge_timeout: float | None = field(default=None, metadata=_help("seconds of a request; 300 if left out"))
    judge_price_in: float | None = field(default=None, metadata=_help("price of a million tokens of prompts"))
    judge_price_out: float | None = field(default=None, metadata=_help("price of a million tokens of replies"))

    @property
    def prices(self) -> tuple[float, float] | None:
        """Of a million tokens of prompts and of replies."""
        if self.judge_price_in is None or self.judge_price_out is None:
            return None
        return self.judge_price_in, self.judge_price_out

    @property
    def body(self) -> dict[str, Any]:
        """Fields of a request to the judge besides the model and the messages."""
        tokens = MAX_TOKENS if self.judge_max_tokens is None else self.judge_max_tokens
        made = {"temperature": 0, "max_tokens": tokens, **(self.judge_body or {})}
        return {name: value for name, value in made.items() if value is not None}

    def check(self) -> None:
        """Refuse what does not go together, before any work.

        Raises:
            InputError: names the flags.
        """
        judging = sorted(name for name in given(self) if name.startswith("judge_"))
        if judging and not (self.judge_url and self.judge_model):
            lacks = "--judge_url URL" if not self.judge_url else "--judge_model NAME"
            raise InputError(f"--{judging[0]} needs {lacks} as well; a judge has both")
        if (self.judge_price_in is None) != (self.judge_price_out is None):
            raise InputError("--judge_price_in and --judge_price_out come together")
        for name in ("judge_price_in", "judge_price_out"):
            if (price := getattr(self, name)) is not None and price < 0:
                raise InputError(f"{name} must be at least 0, got {price}")
        if self.judge_max_tokens is not None and self.judge_max_tokens < 1:
            raise InputError(f"judge_max_tokens must be at least 1, got {self.judge_max_tokens}")
        if self.judge_body is not None and not isinstance(self.judge_body, dict):
            raise InputError(f"judge_body must be an object of JSON, got {self.judge_body!r}")
        if taken := {"model", "messages", "stream", "n"} & set(self.judge_body or {}):
            raise InputError(
                f"judge_body must not hold {sorted(taken)[0]}: it is not yours to choose here; leave it out"
            )
        if not isinstance(self.body.get("max_completion_tokens", self.body.get("max_tokens", 0)), int):
            raise InputError(f"judge_body: the largest length of a reply must be a whole number, got {self.judge_body}")
        if self.out is not None and not self.judge_only and not self.out.endswith(".jsonl"):
            raise InputError(f"--out of answers must end in .jsonl, got {self.out}")
        if self.judge_only and self.overwrite:
            raise InputError("--judge_only generates nothing; leave --overwrite out, or pass --judge_again")


def run(name: str, questions_file: str, options: MtBenchOptions, base: str | None, as_json: bool) -> None:
    """Answer, judge where a judge is named, and print.

    Args:
        name: the model, as `lrlora.generation.load` takes it.
        questions_file: in FastChat's format.
        options: what else was typed.
        base: base model of an adapter.
        as_json: print the result as JSON.
    """
    options.check()
    judge = None if options.judge_url is None else _judge(options)
    questions = read_questions(Path(questions_file).expanduser(), processes.tell)
    model_id = options.model_id or Path(name).expanduser().resolve().name
    out = Path(options.out or f"mt_bench/{model_id}.jsonl").expanduser()
    answers = _answers(name, out, model_id, questions, options, base)
    if judge is None:
        if as_json:
            print(json.dumps({"answers": str(out), "questions": len(answers)}, indent=2))
        else:
            print(f"{out}: answers to {len(answers)} questions; --judge_url and --judge_model have them judged")
        return
    requests = requests_of(questions, answers)
    judge_name = re.sub(r"[^\w.-]", "-", judge.model)
    beside = f"{out.name.removesuffix('.gz').removesuffix('.jsonl')}.{judge_name}"
    file = out.with_name(f"{beside}.judgments.jsonl")

    def announce(left: Sequence[Asked]) -> None:
        processes.tell(estimate(left, _most_tokens(options.body), options.prices))

    if options.judge_estimate:
        announce(requests)
        return
    judgments = judge_answers(file, requests, judge, options.body, options.judge_again, announce, processes.tell)
    found = {"model_id": model_id, "judge": judgments[0]["judge"], "request": options.body}
    found |= summary(questions, judgments)
    if options.prices and None not in (found["tokens_in"], found["tokens_out"]):
        tokens = found["tokens_in"], found["tokens_out"]
        found["cost"] = sum(count * price / 1e6 for count, price in zip(tokens, options.prices, strict=True))
    result = out.with_name(f"{beside}.json")
    write_json(result, found)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        _print(found, result)


def _judge(options: MtBenchOptions) -> Endpoint:
    timeout = 300.0 if options.judge_timeout is None else options.judge_timeout
    key = key_of_environment()
    assert options.judge_url is not None and options.judge_model is not None
    made = Endpoint(options.judge_url, options.judge_model, key, timeout, say=processes.tell)
    parts = urllib.parse.urlsplit(made.url)
    if key and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        processes.tell(f"warning: the key in {KEY} goes to {parts.hostname} unencrypted; https encrypts it")
    return made


def _most_tokens(body: Mapping[str, Any]) -> int | None:
    """The largest length of a reply, by either of its names; None without one."""
    return body.get("max_completion_tokens", body.get("max_tokens"))


def _answers(
    name: str, out: Path, model_id: str, questions: list[Question], options: MtBenchOptions, base: str | None
) -> list[Record]:
    """The answers that are there, or new ones."""
    if options.judge_only:
        found = read_answers(out, questions, model_id, processes.tell)
        processes.tell(f"{out}: answers to {len(found)} questions are judged as they are")
        return found
    loading = {each.name: getattr(options, each.name) or None for each in dataclasses.fields(BaseOptions)}
    name, template = model_folder(name), options.template
    tokens = MAX_NEW_TOKENS if options.max_new_tokens is None else options.max_new_tokens
    settings = Settings.of(origin_of(name, template, loading, base), tokens, options.seed or 0)
    if out.exists() and not options.overwrite:
        found = read_answers(out, questions, model_id, processes.tell)
        check_answers(out, found, questions, settings)
        processes.tell(f"{out} is there: nothing is generated")
        return found
    model = load(name, template, loading, base, processes.tell)
    tell_of_changes([name])
    return answer_questions(out, model, model_id, questions, settings, options.overwrite, processes.tell)


def _print(found: Record, file: Path) -> None:
    """A line per category, a column per turn."""
    rows = {**found["categories"], "all": {"score": found["score"], **found["turns"]}}
    print_table(
        f"{found['model_id']}: mean score of 1 to 10 by {found['judge'][0]}, {found['questions']} questions",
        ("category", "turn 1", "turn 2", "both"),
        ((name, *(_number(means[part]) for part in ("1", "2", "score"))) for name, means in rows.items()),
    )
    if found["unparsable"]:
        listed = ", ".join(f"{number} turn {turn}" for number, turn in found["unparsable"])
        print(
            f"{len(found['unparsable'])} of {found['judgments']} judgments have no score, and are in no mean: {listed}"
        )
    if found["cut"]:
        print(f"{found['cut']} judgments were cut at their largest length; --judge_max_tokens allows more")
    if found["tokens_in"] is not None and found["tokens_out"] is not None:
        cost = f", cost {found['cost']:.2f}" if "cost" in found else ""
        print(f"{found['tokens_in']} tokens of prompts and {found['tokens_out']} of replies, by the server{cost}")
    print(f"result: {file}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
